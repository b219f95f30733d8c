// Registers the CUDA kernels of multi-scale deformable attention; the only Torch types are here.
// Schemas, fakes and gradients are declared in kernels/msda/register.py.

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

#include "msda_cuda.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "msda: ", what, ": ", cudaGetErrorString(error));
}

GpuType type_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return GpuType::kFloat;
    case ScalarType::BFloat16: return GpuType::kBFloat16;
    case ScalarType::Half: return GpuType::kHalf;
    default: STD_TORCH_CHECK(false, "msda: ", name, " must be float32, bfloat16 or float16");
  }
}

// 16-byte loads need the first element aligned, which a view need not have
Tensor aligned(const Tensor& tensor) {
  Tensor contiguous = torch::stable::contiguous(tensor);
  const bool is_aligned = reinterpret_cast<uintptr_t>(contiguous.const_data_ptr()) % 16 == 0;
  return is_aligned ? contiguous : torch::stable::clone(contiguous);
}

Tensor as_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// One call: sizes, the tensors that keep memory alive, the device and its current stream.
class Call {
 public:
  GpuProblem problem{};

  Call(const Tensor& value, const std::vector<int64_t>& level_sizes_hw,
       const std::optional<Tensor>& reference, const Tensor& samples, const Tensor& weights)
      : guard_(value.get_device_index()),
        value_(aligned(value)),
        sample_type_(common_type(samples, weights)),
        samples_(torch::stable::contiguous(as_type(samples, sample_type_))),
        weights_(torch::stable::contiguous(as_type(weights, sample_type_))) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(value.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    set_sizes(level_sizes_hw);
    if (reference.has_value()) {
      reference_ = torch::stable::contiguous(as_type(*reference, ScalarType::Float));
      problem.form = reference_->size(3) == 4 ? 4 : 2;
      problem.reference = static_cast<const float*>(reference_->const_data_ptr());
    }
    problem.value_type = type_of(value_, "value");
    problem.sample_type = type_of(samples_, "points or offsets");
    problem.value = value_.const_data_ptr();
    problem.samples = samples_.const_data_ptr();
    problem.weights = weights_.const_data_ptr();
  }

  bool is_empty() const { return weights_.numel() == 0; }
  cudaStream_t stream() const { return stream_; }

  Tensor forward() {
    GpuProblem& p = problem;
    Tensor output =
        torch::stable::new_empty(value_, {p.num_images, p.num_queries, p.num_heads * p.head_dim});
    p.output = output.mutable_data_ptr();
    if (!is_empty()) check(msda_gpu_forward(p, stream_), "forward");
    return output;
  }

  // grad_value, grad of samples, grad of weights in the types of this call
  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, bool deterministic) {
    GpuProblem& p = problem;
    const Tensor grad = aligned(grad_output);
    p.grad_output = grad.const_data_ptr();
    const bool needs_buffer = deterministic || p.value_type != GpuType::kFloat;
    const ScalarType sum_type = deterministic ? ScalarType::Long : ScalarType::Float;
    const Tensor sums = torch::stable::new_zeros(value_, value_.sizes(), sum_type);
    const Tensor grad_samples = torch::stable::new_empty(samples_, samples_.sizes());
    const Tensor grad_weights = torch::stable::new_empty(weights_, weights_.sizes());
    p.grad_value_sums = sums.mutable_data_ptr();
    p.grad_samples = grad_samples.mutable_data_ptr();
    p.grad_weights = grad_weights.mutable_data_ptr();
    if (is_empty()) return {as_type(sums, value_.scalar_type()), grad_samples, grad_weights};
    std::optional<Tensor> scale;
    if (deterministic) {
      scale = torch::stable::new_empty(value_, {3}, ScalarType::Float);
      auto* numbers = static_cast<float*>(scale->mutable_data_ptr());
      p.fixed_point_scale = numbers;
      check(msda_gpu_fixed_point_scale(p, numbers, stream_), "fixed-point scale");
    }
    check(msda_gpu_backward(p, stream_), "backward");
    if (!needs_buffer) return {sums, grad_samples, grad_weights};
    const Tensor grad_value = torch::stable::new_empty(value_, value_.sizes());
    check(msda_gpu_convert(p, grad_value.mutable_data_ptr(), stream_), "conversion");
    return {grad_value, grad_samples, grad_weights};
  }

  // room for the parts of grad_reference, one per head
  Tensor reference_parts() {
    GpuProblem& p = problem;
    const Tensor parts = torch::stable::new_empty(
        *reference_, {p.num_images, p.num_queries, p.num_heads, p.num_levels, p.form});
    p.grad_reference_parts = static_cast<float*>(parts.mutable_data_ptr());
    return parts;
  }

  Tensor sum_reference_parts() {
    const Tensor grad = torch::stable::new_empty(*reference_, reference_->sizes());
    if (is_empty()) return grad;
    auto* to = static_cast<float*>(grad.mutable_data_ptr());
    check(msda_gpu_sum_heads(problem, to, stream_), "gradient of the reference");
    return grad;
  }

 private:
  static ScalarType common_type(const Tensor& samples, const Tensor& weights) {
    // the kernels read both in one type; float32 wins, as points usually are
    return samples.scalar_type() == weights.scalar_type() ? samples.scalar_type()
                                                          : ScalarType::Float;
  }

  void set_sizes(const std::vector<int64_t>& level_sizes_hw) {
    STD_TORCH_CHECK(value_.dim() == 4 && samples_.dim() == 6 && weights_.dim() == 5,
                    "msda: value, samples and weights must have 4, 6 and 5 dimensions");
    GpuProblem& p = problem;
    p.num_images = int(value_.size(0));
    p.num_pixels = int(value_.size(1));
    p.num_heads = int(value_.size(2));
    p.head_dim = int(value_.size(3));
    p.num_queries = int(samples_.size(1));
    p.num_levels = int(samples_.size(3));
    p.num_points = int(samples_.size(4));
    STD_TORCH_CHECK(p.num_levels <= kMaxLevels && p.num_levels * p.num_points <= kMaxSamples &&
                        p.num_levels * 2 == int(level_sizes_hw.size()),
                    "msda: at most ", kMaxLevels, " levels and ", kMaxSamples, " samples");
    STD_TORCH_CHECK(value_.size(1) * value_.size(2) * value_.size(3) < (int64_t(1) << 31),
                    "msda: S * N * D must be below 2^31");
    int start = 0;
    for (int level = 0; level < p.num_levels; ++level) {
      p.levels.height[level] = int(level_sizes_hw[2 * level]);
      p.levels.width[level] = int(level_sizes_hw[2 * level + 1]);
      p.levels.start[level] = start;
      start += p.levels.height[level] * p.levels.width[level];
    }
    STD_TORCH_CHECK(start == p.num_pixels, "msda: value must have ", start, " pixels; got ",
                    p.num_pixels);
  }

  torch::stable::accelerator::DeviceGuard guard_;
  Tensor value_;
  ScalarType sample_type_;
  Tensor samples_, weights_;
  std::optional<Tensor> reference_;
  cudaStream_t stream_ = nullptr;
};

Tensor msda_forward(const Tensor& value, std::vector<int64_t> level_sizes_hw,
                    const Tensor& points_xy01, const Tensor& weights) {
  return Call(value, level_sizes_hw, std::nullopt, points_xy01, weights).forward();
}

std::tuple<Tensor, Tensor, Tensor> msda_backward(const Tensor& grad_output, const Tensor& value,
                                                 std::vector<int64_t> level_sizes_hw,
                                                 const Tensor& points_xy01, const Tensor& weights,
                                                 bool deterministic) {
  Call call(value, level_sizes_hw, std::nullopt, points_xy01, weights);
  auto [grad_value, grad_points, grad_weights] = call.backward(grad_output, deterministic);
  return {grad_value, as_type(grad_points, points_xy01.scalar_type()),
          as_type(grad_weights, weights.scalar_type())};
}

Tensor msda_fused_forward(const Tensor& value, std::vector<int64_t> level_sizes_hw,
                          const Tensor& reference, const Tensor& offsets, const Tensor& logits) {
  return Call(value, level_sizes_hw, reference, offsets, logits).forward();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> msda_fused_backward(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> level_sizes_hw,
    const Tensor& reference, const Tensor& offsets, const Tensor& logits, bool deterministic) {
  Call call(value, level_sizes_hw, reference, offsets, logits);
  const Tensor parts = call.reference_parts();
  auto [grad_value, grad_offsets, grad_logits] = call.backward(grad_output, deterministic);
  const Tensor grad_reference = call.sum_reference_parts();
  return {grad_value, as_type(grad_reference, reference.scalar_type()),
          as_type(grad_offsets, offsets.scalar_type()),
          as_type(grad_logits, logits.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(xdecoder, CUDA, m) {
  m.impl("msda_forward", TORCH_BOX(&msda_forward));
  m.impl("msda_backward", TORCH_BOX(&msda_backward));
  m.impl("msda_fused_forward", TORCH_BOX(&msda_fused_forward));
  m.impl("msda_fused_backward", TORCH_BOX(&msda_fused_backward));
}
