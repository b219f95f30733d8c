// Vectors of one instruction set. Included by one .cpp file per instruction set, which defines
// XDEC_ISA (a namespace) and is compiled with that set's flags; nothing here has linkage, so no
// AVX-512 copy of an inline function can end up in a program that runs without AVX-512.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "../common/half_types.h"

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float FloatVec __attribute__((vector_size(kVectorBytes)));
typedef double DoubleVec __attribute__((vector_size(kVectorBytes)));

template <class C> struct VecOf;
template <> struct VecOf<float> { using type = FloatVec; };
template <> struct VecOf<double> { using type = DoubleVec; };
template <class C> using Vec = typename VecOf<C>::type;

template <class C> constexpr int kLanes = kVectorBytes / sizeof(C);

template <class C> inline Vec<C> broadcast(C x) { return Vec<C>{} + x; }

inline FloatVec load(const float* p) { FloatVec v; memcpy(&v, p, sizeof v); return v; }
inline DoubleVec load(const double* p) { DoubleVec v; memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, FloatVec v) { memcpy(p, &v, sizeof v); }
inline void store(double* p, DoubleVec v) { memcpy(p, &v, sizeof v); }

inline FloatVec load(const BFloat16* p) {
#if defined(__AVX512F__)
  __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (FloatVec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#elif defined(__AVX2__)
  __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (FloatVec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
#else
  FloatVec v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

inline FloatVec load(const Half* p) {
#if defined(__AVX512F__)
  return (FloatVec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (FloatVec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  FloatVec v;
  for (int i = 0; i < kLanes<float>; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

// a * b + c, rounded once where the hardware can
inline FloatVec fma(FloatVec a, FloatVec b, FloatVec c) {
#if defined(__AVX512F__)
  return (FloatVec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (FloatVec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (FloatVec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline DoubleVec fma(DoubleVec a, DoubleVec b, DoubleVec c) { return a * b + c; }

// sums[i] = sum of the lanes of vi
inline void sum_lanes(FloatVec v0, FloatVec v1, FloatVec v2, FloatVec v3, float* sums) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  auto fold = [](FloatVec v) __attribute__((always_inline)) {
    __m512i bits = (__m512i)v;
    __m256 high = _mm256_castsi256_ps(_mm512_extracti64x4_epi64(bits, 1));
    return _mm256_add_ps(_mm512_castps512_ps256((__m512)v), high);
  };
  __m256 a = fold(v0), b = fold(v1), c = fold(v2), d = fold(v3);
#else
  __m256 a = (__m256)v0, b = (__m256)v1, c = (__m256)v2, d = (__m256)v3;
#endif
  __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  __m128 both = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
  _mm_storeu_ps(sums, both);
#else
  const FloatVec all[4] = {v0, v1, v2, v3};
  for (int i = 0; i < 4; ++i) {
    sums[i] = 0;
    for (int lane = 0; lane < kLanes<float>; ++lane) sums[i] += all[i][lane];
  }
#endif
}

inline void sum_lanes(DoubleVec v0, DoubleVec v1, DoubleVec v2, DoubleVec v3, double* sums) {
  const DoubleVec all[4] = {v0, v1, v2, v3};
  for (int i = 0; i < 4; ++i) {
    sums[i] = 0;
    for (int lane = 0; lane < kLanes<double>; ++lane) sums[i] += all[i][lane];
  }
}

// rows of `count` elements, from or to the type of the tensor
template <class C, class T> inline void load_row(const T* from, int64_t count, C* to) {
  int64_t i = 0;
  for (; i + kLanes<C> <= count; i += kLanes<C>) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = static_cast<C>(to_float(from[i]));
}

inline void store_row(const float* from, int64_t count, float* to) {
  memcpy(to, from, count * sizeof(float));
}
inline void store_row(const double* from, int64_t count, double* to) {
  memcpy(to, from, count * sizeof(double));
}
inline void store_row(const float* from, int64_t count, BFloat16* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(from[i]);
}
inline void store_row(const float* from, int64_t count, Half* to) {
  int64_t i = 0;
#if defined(__AVX2__)
  for (; i + 8 <= count; i += 8) {
    __m128i bits = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), bits);
  }
#endif
  for (; i < count; ++i) to[i] = to_half(from[i]);
}

// memory of one thread, aligned to cache lines; grows and is never copied
template <class C> class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free(data_); }

  // false when the memory cannot be had
  bool reserve(int64_t count) {
    if (count <= capacity_) return true;
    free(data_);
    capacity_ = count;
    const size_t bytes = (count * sizeof(C) + 63) / 64 * 64;
    data_ = static_cast<C*>(aligned_alloc(64, bytes));
    return data_ != nullptr;
  }
  C* get() const { return data_; }

 private:
  C* data_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace
