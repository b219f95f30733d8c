// CUDA kernels of multi-scale deformable attention; see kernels/msda/README.md.
//
//   a group of G lanes = one (query, head); lane j reads channels [16 B * j, 16 B * (j + 1))
//
//   round r:  lane j locates sample r * G + j        (each location once per group)
//             for k in 0..G: shuffle sample k to all lanes, read 4 rows, accumulate
//   backward: the four dot products are summed over the group and kept by lane k, which then
//             computes the gradients of its sample; rows of grad_value get vector reductions

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <float.h>

#include <algorithm>

#include "msda_cuda.h"

namespace {

constexpr int kThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
template <class T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <> __device__ inline __half from_float<__half>(float x) { return __float2half_rn(x); }

// 16 bytes of channels
template <class T> struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

template <class T> __device__ inline void load_pack(const T* from, float* to) {
  const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(from);
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) to[i] = to_float(pack.values[i]);
}

template <class T> __device__ inline void store_pack(T* to, const float* from) {
  Pack<T> pack;
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) pack.values[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T>*>(to) = pack;
}

// Adds of one pack of channels into grad_value.
struct FloatSums {
  float* sums;

  __device__ explicit FloatSums(const GpuProblem& p)
      : sums(static_cast<float*>(p.grad_value_sums)) {}

  template <int kSize> __device__ void add(int64_t at, const float* grad, float weight) const {
#pragma unroll
    for (int i = 0; i < kSize; i += 4) {
      float* to = sums + at + i;
#if __CUDA_ARCH__ >= 900
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to),
                   "f"(grad[i] * weight), "f"(grad[i + 1] * weight), "f"(grad[i + 2] * weight),
                   "f"(grad[i + 3] * weight)
                   : "memory");
#else
#pragma unroll
      for (int k = 0; k < 4; ++k) atomicAdd(to + k, grad[i + k] * weight);
#endif
    }
  }
};

struct FixedPointSums {
  unsigned long long* sums;
  float scale;

  __device__ explicit FixedPointSums(const GpuProblem& p)
      : sums(static_cast<unsigned long long*>(p.grad_value_sums)), scale(*p.fixed_point_scale) {}

  template <int kSize> __device__ void add(int64_t at, const float* grad, float weight) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const long long fixed = __float2ll_rn(grad[i] * weight * scale);
      atomicAdd(sums + at + i, static_cast<unsigned long long>(fixed));
    }
  }
};

template <int G> __device__ inline float group_sum(float x) {
#pragma unroll
  for (int step = G / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step, G);
  return x;
}
template <int G> __device__ inline float group_max(float x) {
#pragma unroll
  for (int step = G / 2; step > 0; step /= 2) {
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step, G));
  }
  return x;
}

// One located sample, held by one lane.
struct Sample {
  // upper left pixel, which may lie one left of or above the level
  int pixel;
  // bits: left, right column inside; upper, lower row inside; 0 when the sample is outside
  int inside;
  float fx, fy, weight;
  // d pixel coordinate / d sample
  float slope_x, slope_y;
};

constexpr int kLeft = 1, kRight = 2, kUpper = 4, kLower = 8;

// multiplications and additions are kept apart: coordinates round as in the reference
__device__ inline void place(const GpuProblem& p, int level, float x, float y, Sample& sample) {
  const int width = p.levels.width[level], height = p.levels.height[level];
  const bool is_inside = x > -1.0f && x < width && y > -1.0f && y < height;
  if (!is_inside) {
    sample.inside = 0;
    sample.weight = sample.fx = sample.fy = 0;
    sample.pixel = 0;
    return;
  }
  const float x_floor = floorf(x), y_floor = floorf(y);
  const int x0 = int(x_floor), y0 = int(y_floor);
  sample.fx = x - x_floor;
  sample.fy = y - y_floor;
  sample.pixel = p.levels.start[level] + y0 * width + x0;
  sample.inside = (x0 >= 0 ? kLeft : 0) | (x0 + 1 < width ? kRight : 0) |
                  (y0 >= 0 ? kUpper : 0) | (y0 + 1 < height ? kLower : 0);
}

template <class A> struct Softmax {
  float largest = 0, scale = 1;

  template <int G>
  __device__ void prepare(const A* logits, int count, int lane) {
    float top = -INFINITY;
    for (int i = lane; i < count; i += G) top = fmaxf(top, to_float(logits[i]));
    largest = group_max<G>(top);
    float total = 0;
    for (int i = lane; i < count; i += G) total += expf(to_float(logits[i]) - largest);
    scale = 1.0f / group_sum<G>(total);
  }
  __device__ float weight(A logit) const { return expf(to_float(logit) - largest) * scale; }
};

// `row` counts (image, query, head).
template <class A, bool kIsFused>
__device__ inline Sample locate(const GpuProblem& p, const Softmax<A>& softmax, int64_t row,
                                int64_t query_row, int index) {
  const int level = index / p.num_points;
  const float width = float(p.levels.width[level]), height = float(p.levels.height[level]);
  const int64_t at = row * (p.num_levels * p.num_points) + index;
  const A* samples = static_cast<const A*>(p.samples) + 2 * at;
  const float first = to_float(samples[0]), second = to_float(samples[1]);
  const A logit = static_cast<const A*>(p.weights)[at];
  Sample sample;
  sample.weight = kIsFused ? softmax.weight(logit) : to_float(logit);
  float x, y;
  if constexpr (!kIsFused) {
    x = __fsub_rn(__fmul_rn(first, width), 0.5f);
    y = __fsub_rn(__fmul_rn(second, height), 0.5f);
    sample.slope_x = width;
    sample.slope_y = height;
  } else {
    const float* reference = p.reference + (query_row * p.num_levels + level) * p.form;
    sample.slope_x = sample.slope_y = 1;
    if (p.form == 4) {
      const float half_over_points = 0.5f / p.num_points;
      sample.slope_x = reference[2] * width * half_over_points;
      sample.slope_y = reference[3] * height * half_over_points;
    }
    x = reference[0] * width - 0.5f + first * sample.slope_x;
    y = reference[1] * height - 0.5f + second * sample.slope_y;
  }
  place(p, level, x, y, sample);
  return sample;
}

template <int G> __device__ inline Sample shuffle(const Sample& mine, int from) {
  Sample sample;
  sample.pixel = __shfl_sync(kAllLanes, mine.pixel, from, G);
  sample.inside = __shfl_sync(kAllLanes, mine.inside, from, G);
  sample.fx = __shfl_sync(kAllLanes, mine.fx, from, G);
  sample.fy = __shfl_sync(kAllLanes, mine.fy, from, G);
  sample.weight = __shfl_sync(kAllLanes, mine.weight, from, G);
  return sample;
}

// Where a group works. Lanes past the last row or channel take part in shuffles only.
template <int G, int kSize> struct Place {
  int lane;
  bool is_used, has_channels;
  int64_t row, query_row, value_base;
  int stride, channel;

  __device__ explicit Place(const GpuProblem& p) {
    const int64_t group = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / G;
    const int64_t num_rows = int64_t(p.num_images) * p.num_queries * p.num_heads;
    lane = threadIdx.x % G;
    is_used = group < num_rows;
    row = is_used ? group : num_rows - 1;
    query_row = row / p.num_heads;
    channel = lane * kSize;
    has_channels = is_used && channel < p.head_dim;
    stride = p.num_heads * p.head_dim;
    const int64_t image = query_row / p.num_queries;
    const int head = int(row - query_row * p.num_heads);
    value_base = image * p.num_pixels * stride + head * p.head_dim + channel;
  }
};

__device__ inline bool has_corner(int inside, int corner) {
  const int column = corner & 1 ? kRight : kLeft, row = corner & 2 ? kLower : kUpper;
  return (inside & column) && (inside & row);
}

template <class T, class A, int G, bool kIsFused>
__global__ void __launch_bounds__(kThreads)
    msda_forward_kernel(const __grid_constant__ GpuProblem p) {
  constexpr int kSize = Pack<T>::kSize;
  const Place<G, kSize> at(p);
  const int num_samples = p.num_levels * p.num_points;
  Softmax<A> softmax;
  if constexpr (kIsFused) {
    softmax.template prepare<G>(static_cast<const A*>(p.weights) + at.row * num_samples,
                                num_samples, at.lane);
  }
  const T* value = static_cast<const T*>(p.value) + at.value_base;
  float sums[kSize] = {};
  for (int first = 0; first < num_samples; first += G) {
    Sample mine{};
    if (first + at.lane < num_samples) {
      mine = locate<A, kIsFused>(p, softmax, at.row, at.query_row, first + at.lane);
    }
    const int count = min(G, num_samples - first);
    for (int k = 0; k < count; ++k) {
      const Sample sample = shuffle<G>(mine, k);
      const int width = p.levels.width[(first + k) / p.num_points];
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        if (!at.has_channels || !has_corner(sample.inside, corner)) continue;
        const int pixel = sample.pixel + (corner & 1) + (corner & 2 ? width : 0);
        const float weight = sample.weight * (corner & 1 ? sample.fx : 1 - sample.fx) *
                             (corner & 2 ? sample.fy : 1 - sample.fy);
        float row[kSize];
        load_pack(value + pixel * at.stride, row);
#pragma unroll
        for (int i = 0; i < kSize; ++i) sums[i] += weight * row[i];
      }
    }
  }
  if (at.has_channels) {
    store_pack(static_cast<T*>(p.output) + at.row * p.head_dim + at.channel, sums);
  }
}

// The gradients of the weight and of the pixel coordinates of one sample.
struct SampleGrad {
  float weight, x, y;
};

__device__ inline SampleGrad sample_gradient(const Sample& s, const float* dots) {
  const float left = 1 - s.fx, upper = 1 - s.fy;
  return {upper * (left * dots[0] + s.fx * dots[1]) + s.fy * (left * dots[2] + s.fx * dots[3]),
          s.weight * (upper * (dots[1] - dots[0]) + s.fy * (dots[3] - dots[2])),
          s.weight * (left * (dots[2] - dots[0]) + s.fx * (dots[3] - dots[1]))};
}

// Four corners of one sample: adds into grad_value and returns the dot products of this lane.
template <class T, class Sums, int G>
__device__ inline void corners_backward(const GpuProblem& p, const Place<G, Pack<T>::kSize>& at,
                                        const Sums& grad_value, const float* grad,
                                        const Sample& sample, int width, float* dots) {
  constexpr int kSize = Pack<T>::kSize;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    dots[corner] = 0;
    if (!at.has_channels || !has_corner(sample.inside, corner)) continue;
    const int pixel = sample.pixel + (corner & 1) + (corner & 2 ? width : 0);
    const float weight = sample.weight * (corner & 1 ? sample.fx : 1 - sample.fx) *
                         (corner & 2 ? sample.fy : 1 - sample.fy);
    const int64_t offset = at.value_base + pixel * at.stride;
    float row[kSize];
    load_pack(static_cast<const T*>(p.value) + offset, row);
#pragma unroll
    for (int i = 0; i < kSize; ++i) dots[corner] += grad[i] * row[i];
    grad_value.template add<kSize>(offset, grad, weight);
  }
}

// Fused forms, after all samples: softmax backward, and this head's part of grad_reference.
// Shared memory per group: gradients of weights, and of x and y in pixels.
template <class A, int G>
__device__ inline void finish_fused(const GpuProblem& p, const Softmax<A>& softmax, int64_t row,
                                    bool is_used, int lane, const float* grads) {
  const int num_samples = p.num_levels * p.num_points;
  const A* logits = static_cast<const A*>(p.weights) + row * num_samples;
  float mean = 0;
  for (int i = lane; i < num_samples; i += G) mean += softmax.weight(logits[i]) * grads[3 * i];
  mean = group_sum<G>(mean);
  __syncwarp();
  if (!is_used) return;
  A* grad_logits = static_cast<A*>(p.grad_weights) + row * num_samples;
  for (int i = lane; i < num_samples; i += G) {
    grad_logits[i] = from_float<A>(softmax.weight(logits[i]) * (grads[3 * i] - mean));
  }
  const A* offsets = static_cast<const A*>(p.samples) + 2 * row * num_samples;
  for (int level = lane; level < p.num_levels; level += G) {
    float x = 0, y = 0, extent_x = 0, extent_y = 0;
    for (int i = level * p.num_points; i < (level + 1) * p.num_points; ++i) {
      x += grads[3 * i + 1];
      y += grads[3 * i + 2];
      extent_x += grads[3 * i + 1] * to_float(offsets[2 * i]);
      extent_y += grads[3 * i + 2] * to_float(offsets[2 * i + 1]);
    }
    const float width = float(p.levels.width[level]), height = float(p.levels.height[level]);
    float* part = p.grad_reference_parts + (row * p.num_levels + level) * p.form;
    part[0] = x * width;
    part[1] = y * height;
    if (p.form == 4) {
      part[2] = extent_x * width * (0.5f / p.num_points);
      part[3] = extent_y * height * (0.5f / p.num_points);
    }
  }
}

template <class T, class A, int G, bool kIsFused, class Sums>
__global__ void __launch_bounds__(kThreads)
    msda_backward_kernel(const __grid_constant__ GpuProblem p) {
  constexpr int kSize = Pack<T>::kSize;
  extern __shared__ float shared[];
  const Place<G, kSize> at(p);
  const int num_samples = p.num_levels * p.num_points;
  float* grads = shared + (threadIdx.x / G) * 3 * num_samples;
  Softmax<A> softmax;
  if constexpr (kIsFused) {
    softmax.template prepare<G>(static_cast<const A*>(p.weights) + at.row * num_samples,
                                num_samples, at.lane);
  }
  const Sums grad_value(p);
  float grad[kSize] = {};
  if (at.has_channels) {
    load_pack(static_cast<const T*>(p.grad_output) + at.row * p.head_dim + at.channel, grad);
  }
  for (int first = 0; first < num_samples; first += G) {
    const int index = first + at.lane;
    Sample mine{};
    if (index < num_samples) mine = locate<A, kIsFused>(p, softmax, at.row, at.query_row, index);
    float my_dots[4] = {};
    const int count = min(G, num_samples - first);
    for (int k = 0; k < count; ++k) {
      const Sample sample = shuffle<G>(mine, k);
      const int width = p.levels.width[(first + k) / p.num_points];
      float dots[4];
      corners_backward<T, Sums, G>(p, at, grad_value, grad, sample, width, dots);
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const float sum = group_sum<G>(dots[corner]);
        if (at.lane == k) my_dots[corner] = sum;
      }
    }
    if (index >= num_samples) continue;
    const SampleGrad result = sample_gradient(mine, my_dots);
    if (at.is_used) {
      A* to = static_cast<A*>(p.grad_samples) + 2 * (at.row * num_samples + index);
      to[0] = from_float<A>(mine.inside ? result.x * mine.slope_x : 0.0f);
      to[1] = from_float<A>(mine.inside ? result.y * mine.slope_y : 0.0f);
    }
    if constexpr (!kIsFused) {
      A* to = static_cast<A*>(p.grad_weights) + at.row * num_samples + index;
      if (at.is_used) *to = from_float<A>(result.weight);
    } else {
      grads[3 * index] = result.weight;
      grads[3 * index + 1] = result.x;
      grads[3 * index + 2] = result.y;
    }
  }
  if constexpr (kIsFused) {
    __syncwarp();
    finish_fused<A, G>(p, softmax, at.row, at.is_used, at.lane, grads);
  }
}

template <class T> __global__ void convert_kernel(const GpuProblem p, int64_t count, T* to) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    if (p.fixed_point_scale == nullptr) {
      to[i] = from_float<T>(static_cast<const float*>(p.grad_value_sums)[i]);
    } else {
      const long long sum = static_cast<const long long*>(p.grad_value_sums)[i];
      to[i] = from_float<T>(float(double(sum) / double(*p.fixed_point_scale)));
    }
  }
}

__global__ void sum_heads_kernel(const GpuProblem p, int64_t count, float* to) {
  const int per_query = p.num_levels * p.form;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const float* parts = p.grad_reference_parts + i / per_query * p.num_heads * per_query;
    float sum = 0;
    for (int head = 0; head < p.num_heads; ++head) {
      sum += parts[head * per_query + i % per_query];
    }
    to[i] = sum;
  }
}

// The largest magnitude as the bits of a non-negative float, which order like integers; the
// result does not depend on the order of the threads.
template <class T>
__global__ void largest_kernel(const T* from, int64_t count, unsigned* largest) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  float top = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const float magnitude = fabsf(to_float(from[i]));
    // a NaN becomes infinity, which makes the scale zero
    top = magnitude <= top ? top : (magnitude == magnitude ? magnitude : INFINITY);
  }
  for (int step_lanes = 16; step_lanes > 0; step_lanes /= 2) {
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, step_lanes));
  }
  if (threadIdx.x % 32 == 0) atomicMax(largest, __float_as_uint(top));
}

// Every pixel gets at most 4 * Q * L * P contributions of at most `grad` * `weight`.
__global__ void scale_kernel(float* scale, const unsigned* largest, float contributions,
                             bool has_softmax) {
  const float grad = __uint_as_float(largest[0]);
  const float weight = has_softmax ? 1.0f : __uint_as_float(largest[1]);
  const float bound = fmaxf(grad * weight, FLT_MIN);
  // 2^61 leaves one bit for the rounding of each contribution
  const int exponent = 61 - int(ceilf(log2f(bound))) - int(ceilf(log2f(contributions)));
  // infinite or undefined gradients: dividing by 0 leaves nothing finite, so they are seen
  scale[0] = isfinite(bound) ? ldexpf(1.0f, min(exponent, 126)) : 0.0f;
}

int blocks_for(int64_t count) {
  return int(std::min<int64_t>((count + kThreads - 1) / kThreads, 4096));
}

template <class T, class A, int G, bool kIsFused>
cudaError_t launch(const GpuProblem& p, bool is_backward, cudaStream_t stream) {
  const int64_t rows = int64_t(p.num_images) * p.num_queries * p.num_heads;
  const int64_t blocks = (rows * G + kThreads - 1) / kThreads;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  if (!is_backward) {
    msda_forward_kernel<T, A, G, kIsFused><<<unsigned(blocks), kThreads, 0, stream>>>(p);
    return cudaGetLastError();
  }
  const int shared = !kIsFused ? 0 : kThreads / G * 3 * p.num_levels * p.num_points * 4;
  auto run = [&](auto kernel) {
    // at most 48 KB (64 samples, 4 lanes): what every kernel may use without asking
    kernel<<<unsigned(blocks), kThreads, shared, stream>>>(p);
    return cudaGetLastError();
  };
  return p.fixed_point_scale == nullptr
             ? run(msda_backward_kernel<T, A, G, kIsFused, FloatSums>)
             : run(msda_backward_kernel<T, A, G, kIsFused, FixedPointSums>);
}

template <class T, class A, int G>
cudaError_t launch_form(const GpuProblem& p, bool is_backward, cudaStream_t stream) {
  return p.form == 0 ? launch<T, A, G, false>(p, is_backward, stream)
                     : launch<T, A, G, true>(p, is_backward, stream);
}

template <class T, class A>
cudaError_t launch_lanes(const GpuProblem& p, bool is_backward, cudaStream_t stream) {
  const int lanes = (p.head_dim + Pack<T>::kSize - 1) / Pack<T>::kSize;
  if (lanes <= 4) return launch_form<T, A, 4>(p, is_backward, stream);
  if (lanes <= 8) return launch_form<T, A, 8>(p, is_backward, stream);
  if (lanes <= 16) return launch_form<T, A, 16>(p, is_backward, stream);
  if (lanes <= 32) return launch_form<T, A, 32>(p, is_backward, stream);
  return cudaErrorInvalidValue;
}

cudaError_t launch_types(const GpuProblem& p, bool is_backward, cudaStream_t stream) {
  const bool is_mixed = p.sample_type == GpuType::kFloat;
  switch (p.value_type) {
    case GpuType::kFloat: return launch_lanes<float, float>(p, is_backward, stream);
    case GpuType::kBFloat16:
      return is_mixed ? launch_lanes<__nv_bfloat16, float>(p, is_backward, stream)
                      : launch_lanes<__nv_bfloat16, __nv_bfloat16>(p, is_backward, stream);
    default:
      return is_mixed ? launch_lanes<__half, float>(p, is_backward, stream)
                      : launch_lanes<__half, __half>(p, is_backward, stream);
  }
}

void largest_of(GpuType type, const void* from, int64_t count, unsigned* to, cudaStream_t stream) {
  const int blocks = blocks_for(count);
  switch (type) {
    case GpuType::kFloat:
      largest_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const float*>(from), count, to);
      break;
    case GpuType::kBFloat16:
      largest_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const __nv_bfloat16*>(from),
                                                      count, to);
      break;
    default:
      largest_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const __half*>(from), count, to);
  }
}

}  // namespace

cudaError_t msda_gpu_forward(const GpuProblem& problem, cudaStream_t stream) {
  return launch_types(problem, false, stream);
}

cudaError_t msda_gpu_backward(const GpuProblem& problem, cudaStream_t stream) {
  return launch_types(problem, true, stream);
}

cudaError_t msda_gpu_convert(const GpuProblem& p, void* grad_value, cudaStream_t stream) {
  const int64_t count = int64_t(p.num_images) * p.num_pixels * p.num_heads * p.head_dim;
  const int blocks = blocks_for(count);
  switch (p.value_type) {
    case GpuType::kFloat:
      convert_kernel<<<blocks, kThreads, 0, stream>>>(p, count, static_cast<float*>(grad_value));
      break;
    case GpuType::kBFloat16:
      convert_kernel<<<blocks, kThreads, 0, stream>>>(p, count,
                                                      static_cast<__nv_bfloat16*>(grad_value));
      break;
    default:
      convert_kernel<<<blocks, kThreads, 0, stream>>>(p, count, static_cast<__half*>(grad_value));
  }
  return cudaGetLastError();
}

cudaError_t msda_gpu_sum_heads(const GpuProblem& p, float* grad_reference, cudaStream_t stream) {
  const int64_t count = int64_t(p.num_images) * p.num_queries * p.num_levels * p.form;
  sum_heads_kernel<<<blocks_for(count), kThreads, 0, stream>>>(p, count, grad_reference);
  return cudaGetLastError();
}

cudaError_t msda_gpu_fixed_point_scale(const GpuProblem& p, float* scale, cudaStream_t stream) {
  // scale[1], scale[2]: bits of the largest gradient and of the largest weight
  unsigned* largest = reinterpret_cast<unsigned*>(scale) + 1;
  cudaError_t error = cudaMemsetAsync(scale, 0, 3 * sizeof(float), stream);
  if (error != cudaSuccess) return error;
  const int64_t rows = int64_t(p.num_images) * p.num_queries * p.num_heads;
  const int samples = p.num_levels * p.num_points;
  largest_of(p.value_type, p.grad_output, rows * p.head_dim, largest, stream);
  if (p.form == 0) largest_of(p.sample_type, p.weights, rows * samples, largest + 1, stream);
  const float contributions = 4.0f * p.num_queries * samples;
  scale_kernel<<<1, 1, 0, stream>>>(scale, largest, contributions, p.form != 0);
  return cudaGetLastError();
}
