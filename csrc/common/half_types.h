// The two 16-bit floating types as plain bits, with conversions that round to nearest even.
#pragma once

#include <stdint.h>
#include <string.h>

struct BFloat16 { uint16_t bits; };
struct Half { uint16_t bits; };

namespace {

inline float float_from_bits(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
inline uint32_t bits_of_float(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

inline float to_float(float x) { return x; }
inline double to_float(double x) { return x; }
inline float to_float(BFloat16 x) { return float_from_bits(uint32_t(x.bits) << 16); }

inline float to_float(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t rest = uint32_t(x.bits & 0x7fff) << 13;
  // 2^112 moves the exponent bias from 15 to 127 and also normalises subnormal numbers
  const float scaled = float_from_bits(rest) * float_from_bits(0x77800000);
  const bool is_special = (x.bits & 0x7c00) == 0x7c00;
  return float_from_bits(sign | (is_special ? rest | 0x7f800000 : bits_of_float(scaled)));
}

inline BFloat16 to_bfloat16(float x) {
  const uint32_t bits = bits_of_float(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  return BFloat16{uint16_t(is_nan ? 0x7fc0 : rounded)};
}

inline Half to_half(float x) {
  const uint32_t bits = bits_of_float(x), magnitude = bits & 0x7fffffff;
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  if (magnitude > 0x7f800000) return Half{uint16_t(sign | 0x7e00)};
  // 65520 is the first number that rounds to infinity
  if (magnitude >= 0x477ff000) return Half{uint16_t(sign | 0x7c00)};
  if (magnitude < 0x38800000) {
    // below 2^-14 the float adder rounds at the right place: ulp(0.5) = 2^-24
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return Half{uint16_t(sign | uint16_t(bits_of_float(shifted) - 0x3f000000))};
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return Half{uint16_t(sign | uint16_t((rounded >> 13) - (112 << 10)))};
}

}  // namespace
