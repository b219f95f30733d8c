// What the operator hands to the CPU kernels: pointers and sizes, no Torch types.
#pragma once

#include <stdint.h>

enum class ValueType : int { kFloat, kDouble, kBFloat16, kHalf, kCount };
enum class SampleForm : int { kPoints, kOffsetsFromPoints, kOffsetsFromBoxes };

// Sizes: B images, S summed pixels, N heads, D head dim, Q queries, L levels, P points.
// `value`, `output` and `grad_output` have the value type; all else is float, or double when
// the value type is double.
struct MsdaProblem {
  int64_t num_images, num_pixels, num_heads, head_dim, num_queries, num_levels, num_points;
  // [L, 2] heights and widths, and the first pixel of each level
  const int64_t* level_sizes_hw;
  const int64_t* level_starts;
  SampleForm form;
  // query chunks per (image, head) in forward, so that all threads have work
  int64_t num_chunks;

  const void* value;      // [B, S, N, D]
  const void* reference;  // [B, Q, L, 2 or 4]; not for kPoints
  const void* samples;    // [B, Q, N, L, P, 2]: points xy01, or offsets
  const void* weights;    // [B, Q, N, L, P]: weights, or logits
  void* output;           // [B, Q, N * D]

  const void* grad_output;  // [B, Q, N * D]
  void* grad_value;         // [B, S, N, D]
  void* grad_reference;     // as reference
  void* grad_samples;       // as samples
  void* grad_weights;       // as weights
};

// Each function runs work items [begin, end) and returns false when memory ran out.
using MsdaRange = bool (*)(const MsdaProblem&, int64_t begin, int64_t end);

struct MsdaKernels {
  const char* name;
  // items: B * N * num_chunks
  MsdaRange forward[static_cast<int>(ValueType::kCount)];
  // items: B * N * L, each the owner of its slice of grad_value
  MsdaRange backward[static_cast<int>(ValueType::kCount)];
  // items: B * Q; softmax and reference gradients of the fused forms, after `backward`
  MsdaRange backward_finish[static_cast<int>(ValueType::kCount)];
};

const MsdaKernels& msda_kernels_avx512();
const MsdaKernels& msda_kernels_avx2();
const MsdaKernels& msda_kernels_baseline();
