// What the operator hands to the CUDA kernels: pointers and sizes, no Torch types.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

enum class GpuType : int { kFloat, kBFloat16, kHalf };

constexpr int kMaxLevels = 8;
constexpr int kMaxSamples = 64;

struct GpuLevels {
  int height[kMaxLevels], width[kMaxLevels], start[kMaxLevels];
};

// Sizes as in msda_cpu.h. `form` is 0 for points and weights, 2 for offsets around points and
// 4 for offsets around boxes. Values and outputs have `value_type`, samples and weights
// `sample_type`; `reference` is float32.
struct GpuProblem {
  GpuLevels levels;
  int num_images, num_pixels, num_heads, head_dim, num_queries, num_levels, num_points, form;
  GpuType value_type, sample_type;

  const void* value;
  const float* reference;
  const void* samples;
  const void* weights;
  void* output;

  const void* grad_output;
  // [B, S, N, D] zeros; float32, or fixed-point int64 when `fixed_point_scale` is set
  void* grad_value_sums;
  // [B, Q, N, L, form] for the fused forms
  float* grad_reference_parts;
  void* grad_samples;
  void* grad_weights;
  // one number on the device: contributions are multiplied by it and rounded to integers, whose
  // sum does not depend on the order
  const float* fixed_point_scale;
};

cudaError_t msda_gpu_forward(const GpuProblem& problem, cudaStream_t stream);
cudaError_t msda_gpu_backward(const GpuProblem& problem, cudaStream_t stream);

// grad_value = sums, converted (and divided by the scale).
cudaError_t msda_gpu_convert(const GpuProblem& problem, void* grad_value, cudaStream_t stream);

// grad_reference [B, Q, L, form] = sum over heads of the parts, in order.
cudaError_t msda_gpu_sum_heads(const GpuProblem& problem, float* grad_reference,
                               cudaStream_t stream);

// scale[0] = power of two that keeps every sum of contributions below 2^62; scale[1] is scratch.
cudaError_t msda_gpu_fixed_point_scale(const GpuProblem& problem, float* scale,
                                       cudaStream_t stream);
