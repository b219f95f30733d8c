// kLanes float lanes of the instruction set at hand, by the compiler's vector extensions.
// Included once per instruction set, inside a namespace that defines kLanes and kStrip (how many
// vectors wide a register tile of four rows is), XATTN_FMA set; hence no include guard.
// A vector wider than the registers is correct but many times slower: GCC 12 splits it lane by lane.

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IVec __attribute__((vector_size(kLanes * 4)));
typedef float VecU __attribute__((vector_size(kLanes * 4), aligned(4)));

#define XATTN_INLINE static inline __attribute__((always_inline))

constexpr int64_t kTileVecs = kTileKeys / kLanes;
constexpr uint32_t kAllLanes = (1u << kLanes) - 1;

XATTN_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecU*>(p); }
XATTN_INLINE void store(float* p, Vec x) { *reinterpret_cast<VecU*>(p) = x; }
XATTN_INLINE Vec splat(float x) { return x - Vec{}; }
XATTN_INLINE IVec isplat(int32_t x) { return x - IVec{}; }
XATTN_INLINE Vec fma(Vec x, Vec y, Vec sum) { return XATTN_FMA(x, y, sum); }
XATTN_INLINE Vec vmax(Vec x, Vec y) { return x > y ? x : y; }

template <int... I>
struct LaneShuffles {
  static constexpr IVec kBits = {(1 << I)...};

  // lane i of the result is lane i ^ S of x
  template <int S, class V>
  XATTN_INLINE V swapped(V x) {
    return __builtin_shufflevector(x, x, (I ^ S)...);
  }

  // lanes S apart added: where bit S of the lane is clear those of x, where it is set those of y
  template <int S>
  XATTN_INLINE Vec add_pairs(Vec x, Vec y) {
    return __builtin_shufflevector(x, y, ((I & S) ? kLanes + (I ^ S) : I)...) +
           __builtin_shufflevector(x, y, ((I & S) ? kLanes + I : (I | S))...);
  }
};

template <int... I>
LaneShuffles<I...> lane_shuffles(std::integer_sequence<int, I...>);
using Lanes = decltype(lane_shuffles(std::make_integer_sequence<int, kLanes>{}));

template <int S = kLanes / 2>
XATTN_INLINE float reduce_max(Vec x) {
  x = vmax(x, Lanes::template swapped<S>(x));
  if constexpr (S > 1) return reduce_max<S / 2>(x);
  return x[0];
}

// adds in the order of sum_rows, so that equal products give equal sums
template <int S = 1>
XATTN_INLINE float reduce_add(Vec x) {
  x += Lanes::template swapped<S>(x);
  if constexpr (2 * S < kLanes) return reduce_add<2 * S>(x);
  return x[0];
}

template <int S = kLanes / 2>
XATTN_INLINE uint32_t reduce_or(IVec x) {
  x |= Lanes::template swapped<S>(x);
  if constexpr (S > 1) return reduce_or<S / 2>(x);
  return static_cast<uint32_t>(x[0]);
}

// bit i of the result is set where lane i of `is_set` is -1
XATTN_INLINE uint32_t lane_mask(IVec is_set) { return reduce_or(is_set & Lanes::kBits); }

// -1 in lane i where bit i is set
XATTN_INLINE IVec expand_mask(uint64_t bits) {
  return (isplat(static_cast<int32_t>(bits & kAllLanes)) & Lanes::kBits) != IVec{};
}

XATTN_INLINE IVec lanes_below(int64_t count) {
  return expand_mask(count >= kLanes ? kAllLanes : (1u << count) - 1);
}

// lane i of the result is the sum of the lanes of rows[i]; destroys rows
template <int S = 1>
XATTN_INLINE Vec sum_rows(Vec* rows) {
  for (int i = 0; i < kLanes / (2 * S); ++i)
    rows[i] = Lanes::template add_pairs<S>(rows[2 * i], rows[2 * i + 1]);
  if constexpr (2 * S < kLanes) return sum_rows<2 * S>(rows);
  return rows[0];
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
  p = fma(p, f, splat(1.3333558e-3f));
  p = fma(p, f, splat(9.6181291e-3f));
  p = fma(p, f, splat(5.5504109e-2f));
  p = fma(p, f, splat(2.4022651e-1f));
  p = fma(p, f, splat(6.9314718e-1f));
  p = fma(p, f, splat(1.0f));
  IVec exponent = (IVec)shifted - (IVec)magic + isplat(127);
  Vec result = p * (Vec)(exponent << 23);
  return x < lowest ? Vec{} : result;
}
