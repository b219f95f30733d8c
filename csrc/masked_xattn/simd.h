// Sixteen float lanes on any instruction set, by the compiler's vector extensions.
// Included once per instruction set, inside its namespace; hence no include guard.

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IVec __attribute__((vector_size(64)));
typedef float VecU __attribute__((vector_size(64), aligned(4)));

#define XATTN_INLINE static inline __attribute__((always_inline))

XATTN_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecU*>(p); }
XATTN_INLINE void store(float* p, Vec x) { *reinterpret_cast<VecU*>(p) = x; }
XATTN_INLINE Vec splat(float x) { return x - Vec{}; }
XATTN_INLINE IVec isplat(int32_t x) { return x - IVec{}; }

XATTN_INLINE IVec lane_bits() {
  return IVec{1 << 0,  1 << 1,  1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
              1 << 8,  1 << 9,  1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
}

#define XATTN_HALVE(x, op, type)                                                                  \
  type a = op(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, \
                                         7));                                                     \
  type b = op(a, __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10,  \
                                         11));                                                    \
  type c = op(b, __builtin_shufflevector(b, b, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12,  \
                                         13));                                                    \
  type d = op(c, __builtin_shufflevector(c, c, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15,  \
                                         14));

XATTN_INLINE Vec vmax(Vec x, Vec y) { return x > y ? x : y; }
XATTN_INLINE Vec vadd(Vec x, Vec y) { return x + y; }
XATTN_INLINE IVec vor(IVec x, IVec y) { return x | y; }

XATTN_INLINE float reduce_max(Vec x) {
  XATTN_HALVE(x, vmax, Vec)
  return d[0];
}

XATTN_INLINE float reduce_add(Vec x) {
  XATTN_HALVE(x, vadd, Vec)
  return d[0];
}

// bit i of the result is set where lane i of `is_set` is -1
XATTN_INLINE uint32_t lane_mask(IVec is_set) {
  IVec x = is_set & lane_bits();
  XATTN_HALVE(x, vor, IVec)
  return static_cast<uint32_t>(d[0]);
}

// -1 in lane i where bit i is set
XATTN_INLINE IVec expand_mask(uint32_t bits16) {
  IVec selected = isplat(static_cast<int32_t>(bits16)) & lane_bits();
  return selected != IVec{};
}

// 2^x for x <= 126, relative error below 2e-7; below -126 exactly 0, NaN stays NaN
XATTN_INLINE Vec exp2_vec(Vec x) {
  const Vec lowest = splat(-126.0f);
  // adding 1.5 * 2^23 rounds to an integer that the low mantissa bits then hold
  const Vec magic = splat(12582912.0f);
  Vec clamped = x < lowest ? lowest : x;
  Vec shifted = clamped + magic;
  Vec f = clamped - (shifted - magic);
  // Taylor series of 2^f = e^(f ln 2) on [-1/2, 1/2]
  Vec p = splat(1.5403530e-4f);
  p = p * f + splat(1.3333558e-3f);
  p = p * f + splat(9.6181291e-3f);
  p = p * f + splat(5.5504109e-2f);
  p = p * f + splat(2.4022651e-1f);
  p = p * f + splat(6.9314718e-1f);
  p = p * f + splat(1.0f);
  IVec exponent = (IVec)shifted - (IVec)magic + isplat(127);
  Vec result = p * (Vec)(exponent << 23);
  return x < lowest ? Vec{} : result;
}

// pairs of lanes of x and y added: {x0+x1, y0+y1, x2+x3, y2+y3, ...}
XATTN_INLINE Vec add_pairs_1(Vec x, Vec y) {
  return __builtin_shufflevector(x, y, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         __builtin_shufflevector(x, y, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

XATTN_INLINE Vec add_pairs_2(Vec x, Vec y) {
  return __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
         __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}

XATTN_INLINE Vec add_pairs_4(Vec x, Vec y) {
  return __builtin_shufflevector(x, y, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
         __builtin_shufflevector(x, y, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
}

XATTN_INLINE Vec add_pairs_8(Vec x, Vec y) {
  return __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30,
                                 31);
}

// lane i of the result is the sum of the lanes of rows[i]; destroys rows
XATTN_INLINE Vec sum_rows(Vec* rows) {
  for (int i = 0; i < 8; ++i) rows[i] = add_pairs_1(rows[2 * i], rows[2 * i + 1]);
  for (int i = 0; i < 4; ++i) rows[i] = add_pairs_2(rows[2 * i], rows[2 * i + 1]);
  for (int i = 0; i < 2; ++i) rows[i] = add_pairs_4(rows[2 * i], rows[2 * i + 1]);
  return add_pairs_8(rows[0], rows[1]);
}
