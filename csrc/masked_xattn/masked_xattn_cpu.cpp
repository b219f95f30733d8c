// The CPU kernels compiled for each instruction set, the choice among them, and the row plan.
#include "masked_xattn_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

// vectors never cross a function that is not inlined
#pragma GCC diagnostic ignored "-Wpsabi"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define XATTN_HAS_X86_TARGETS 1
#include <immintrin.h>
#endif

namespace masked_xattn {
namespace {

// finite, so that a tile without a visible key gives 2^(-inf - lowest) = 0 and not NaN
constexpr float kLowestScore = -1e30f;

// compact copies of k and v pay off when every key is visited this often (measured)
constexpr int64_t kVisitsToCompact = 8;

inline float softmax_factor(int64_t dim) {
  constexpr float kLog2E = 1.4426950408889634f;
  return kLog2E / std::sqrt(static_cast<float>(dim));
}

inline float* aligned(float* p) {
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t{63});
}

#define XATTN_FMA(x, y, sum) ((x) * (y) + (sum))
namespace portable {
constexpr int64_t kLanes = 4;
constexpr int kStrip = 2;
#include "simd.h"
#include "mask_bits_impl.h"
#include "resize_impl.h"
#include "attention_impl.h"
#include "attention_backward_impl.h"
}  // namespace portable

#ifdef XATTN_HAS_X86_TARGETS
#undef XATTN_INLINE
#undef XATTN_FMA
#define XATTN_FMA(x, y, sum) _mm256_fmadd_ps(x, y, sum)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
constexpr int64_t kLanes = 8;
constexpr int kStrip = 2;
#include "simd.h"
#include "mask_bits_impl.h"
#include "resize_impl.h"
#include "attention_impl.h"
#include "attention_backward_impl.h"
}  // namespace avx2
#pragma GCC pop_options

#undef XATTN_INLINE
#undef XATTN_FMA
#define XATTN_FMA(x, y, sum) _mm512_fmadd_ps(x, y, sum)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
namespace avx512 {
constexpr int64_t kLanes = 16;
constexpr int kStrip = 4;
#include "simd.h"
#include "mask_bits_impl.h"
#include "resize_impl.h"
#include "attention_impl.h"
#include "attention_backward_impl.h"
}  // namespace avx512
#pragma GCC pop_options
#endif

// A listed key costs about this many times a key of a dense tile: 3 forward, 6 backward, measured
// at head dim 32 and 1024 to 16384 keys, AVX-512. Rows that see more keys than one in so many go
// by tiles.
constexpr int64_t kSparseCost = 4;

KernelTable choose_kernels() {
#ifdef XATTN_HAS_X86_TARGETS
  const char* limit = std::getenv("MASKED_XATTN_ISA");
  const bool may_use_avx512 = limit == nullptr || std::strcmp(limit, "avx512") == 0;
  const bool may_use_avx2 = may_use_avx512 || std::strcmp(limit, "avx2") == 0;
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && may_use_avx512)
    return {avx512::mask_bits_panel, avx512::resize_plane, avx512::forward_head,
            avx512::backward_head};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && may_use_avx2)
    return {avx2::mask_bits_panel, avx2::resize_plane, avx2::forward_head, avx2::backward_head};
#endif
  return {portable::mask_bits_panel, portable::resize_plane, portable::forward_head,
          portable::backward_head};
}

int64_t count_bits(const int32_t* words, int64_t num_words) {
  int64_t count = 0;
  for (int64_t w = 0; w < num_words; ++w)
    count += __builtin_popcount(static_cast<uint32_t>(words[w]));
  return count;
}

void append_keys(std::vector<int32_t>& list, const int32_t* words, int64_t num_words) {
  for (int64_t w = 0; w < num_words; ++w) {
    for (uint32_t word = static_cast<uint32_t>(words[w]); word != 0; word &= word - 1)
      list.push_back(static_cast<int32_t>(w * kWordBits + __builtin_ctz(word)));
  }
}

}  // namespace

namespace {

// Keys' cubic with a = -1/2, as PyTorch's antialiased bicubic has it
double cubic(double x) {
  x = std::abs(x);
  if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
  if (x < 2.0) return -0.5 * (((x - 5.0) * x + 8.0) * x - 4.0);
  return 0.0;
}

// index and weight of every input that output i needs
std::vector<std::pair<int64_t, double>> taps_of(int64_t i, int64_t size_in, int64_t size_out,
                                                bool is_bicubic) {
  const double scale = static_cast<double>(size_in) / static_cast<double>(size_out);
  const double centre = scale * (static_cast<double>(i) + 0.5);
  if (!is_bicubic) {
    const double position = std::max(0.0, centre - 0.5);
    const int64_t first = std::min(static_cast<int64_t>(position), size_in - 1);
    if (first == size_in - 1) return {{first, 1.0}};
    const double fraction = position - static_cast<double>(first);
    return {{first, 1.0 - fraction}, {first + 1, fraction}};
  }
  // antialiased: the filter widens with the step
  const double widening = std::max(scale, 1.0);
  const double support = 2.0 * widening;
  const int64_t first = std::max<int64_t>(static_cast<int64_t>(centre - support + 0.5), 0);
  const int64_t end = std::min(static_cast<int64_t>(centre + support + 0.5), size_in);
  std::vector<std::pair<int64_t, double>> taps;
  double total = 0.0;
  for (int64_t j = first; j < end; ++j) {
    taps.emplace_back(j, cubic((static_cast<double>(j) - centre + 0.5) / widening));
    total += taps.back().second;
  }
  for (auto& tap : taps) tap.second /= total;
  return taps;
}

}  // namespace

Taps resize_taps(int64_t size_in, int64_t size_out, bool is_bicubic) {
  std::vector<std::vector<std::pair<int64_t, double>>> all;
  Taps result{{}, {}, 1};
  for (int64_t i = 0; i < size_out; ++i) {
    all.push_back(taps_of(i, size_in, size_out, is_bicubic));
    result.count = std::max(result.count, static_cast<int64_t>(all.back().size()));
  }
  result.weights.assign(size_out * result.count, 0.0f);
  for (int64_t i = 0; i < size_out; ++i) {
    // shorter lists get zero weights, never inputs outside
    const int64_t start = std::min(all[i].front().first, size_in - result.count);
    result.starts.push_back(start);
    for (const auto& [index, weight] : all[i])
      result.weights[i * result.count + index - start] = static_cast<float>(weight);
  }
  return result;
}

const KernelTable& kernel_table() {
  static const KernelTable table = choose_kernels();
  return table;
}

BatchPlan::BatchPlan(const AttentionShape& shape, const int32_t* bits, const bool* row_any) {
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t first = b * shape.queries;
    add_image(shape, bits + first * shape.words, row_any + first);
    first_sparse_.push_back(static_cast<int64_t>(sparse_rows_.size()));
    first_dense_.push_back(static_cast<int64_t>(dense_rows_.size()));
  }
}

void BatchPlan::add_image(const AttentionShape& shape, const int32_t* bits, const bool* row_any) {
  const int64_t first_listed = static_cast<int64_t>(list_keys_.size());
  for (int64_t row = 0; row < shape.queries; ++row) {
    const int32_t* words = bits + row * shape.words;
    const int64_t count = row_any[row] ? count_bits(words, shape.words) : shape.keys;
    if (count * kSparseCost > shape.keys) {
      dense_rows_.push_back(static_cast<int32_t>(row));
      continue;
    }
    sparse_rows_.push_back(static_cast<int32_t>(row));
    list_starts_.push_back(static_cast<int64_t>(list_keys_.size()));
    list_starts_.push_back(count);
    append_keys(list_keys_, words, shape.words);
    // kernels read whole vectors of keys; key 0 always exists
    while (list_keys_.size() % kListMultiple != 0) list_keys_.push_back(0);
  }
  num_listed_.push_back(static_cast<int64_t>(list_keys_.size()) - first_listed);
}

RowPlan BatchPlan::image(int64_t b) const {
  return {sparse_rows_.data() + first_sparse_[b],
          list_starts_.data() + 2 * first_sparse_[b],
          list_keys_.data(),
          first_sparse_[b + 1] - first_sparse_[b],
          num_listed_[b],
          dense_rows_.data() + first_dense_[b],
          first_dense_[b + 1] - first_dense_[b]};
}

}  // namespace masked_xattn
