// Registers the CPU kernels of multi-scale deformable attention; the only Torch types are here.
// Schemas, fakes and gradients are declared in kernels/msda/register.py.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <stdlib.h>
#include <string.h>

#include <tuple>
#include <vector>

#include "msda_cpu.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

struct InstructionSet {
  const char* name;
  bool is_supported;
  const MsdaKernels& (*kernels)();
};

std::vector<InstructionSet> instruction_sets() {
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  return {{"avx512", has_avx512, msda_kernels_avx512},
          {"avx2", has_avx2, msda_kernels_avx2},
          {"baseline", true, msda_kernels_baseline}};
#else
  return {{"baseline", true, msda_kernels_baseline}};
#endif
}

// The widest supported set that is not wider than `limit` (null: no limit).
const MsdaKernels* find_kernels(const char* limit) {
  bool is_allowed = limit == nullptr;
  for (const InstructionSet& set : instruction_sets()) {
    is_allowed = is_allowed || strcmp(set.name, limit) == 0;
    if (is_allowed && set.is_supported) return &set.kernels();
  }
  return nullptr;
}

const MsdaKernels*& active_kernels() {
  static const MsdaKernels* kernels = find_kernels(nullptr);
  return kernels;
}

ValueType value_type_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case ScalarType::Float: return ValueType::kFloat;
    case ScalarType::Double: return ValueType::kDouble;
    case ScalarType::BFloat16: return ValueType::kBFloat16;
    case ScalarType::Half: return ValueType::kHalf;
    default: STD_TORCH_CHECK(false, "msda: value must be float32, float64, bfloat16 or float16");
  }
}

void check_arithmetic_type(const Tensor& value, const Tensor& tensor, const char* name) {
  const auto expected =
      value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(tensor.scalar_type() == expected, "msda: ", name,
                  " must be float32 (float64 with float64 values)");
}

// Sizes and inputs of one call, and the tensors that keep the memory alive.
struct Call {
  MsdaProblem problem{};
  ValueType type;
  std::vector<int64_t> level_sizes_hw, level_starts;
  std::vector<Tensor> kept;

  const void* keep(const Tensor& tensor) {
    kept.push_back(torch::stable::contiguous(tensor));
    return kept.back().const_data_ptr();
  }
};

void set_levels(Call& call, const std::vector<int64_t>& level_sizes_hw, int64_t num_pixels) {
  call.level_sizes_hw = level_sizes_hw;
  int64_t pixels = 0;
  for (size_t i = 0; i + 1 < level_sizes_hw.size(); i += 2) {
    call.level_starts.push_back(pixels);
    pixels += level_sizes_hw[i] * level_sizes_hw[i + 1];
  }
  STD_TORCH_CHECK(pixels == num_pixels, "msda: value must have ", pixels, " pixels; got ",
                  num_pixels);
  call.problem.level_sizes_hw = call.level_sizes_hw.data();
  call.problem.level_starts = call.level_starts.data();
}

void prepare(Call& call, const Tensor& value, const std::vector<int64_t>& level_sizes_hw,
             const Tensor& samples, const Tensor& weights) {
  MsdaProblem& p = call.problem;
  STD_TORCH_CHECK(value.dim() == 4 && samples.dim() == 6 && weights.dim() == 5,
                  "msda: value, samples and weights must have 4, 6 and 5 dimensions");
  check_arithmetic_type(value, samples, "points or offsets");
  check_arithmetic_type(value, weights, "weights or logits");
  p.num_images = value.size(0);
  p.num_pixels = value.size(1);
  p.num_heads = value.size(2);
  p.head_dim = value.size(3);
  p.num_queries = samples.size(1);
  p.num_levels = samples.size(3);
  p.num_points = samples.size(4);
  STD_TORCH_CHECK(p.num_levels * 2 == int64_t(level_sizes_hw.size()) && p.num_points > 0,
                  "msda: levels and points must fit level_sizes_hw");
  // rows are padded to at most 16 lanes; corner offsets are 32-bit
  const int64_t row = p.num_heads * (p.head_dim + 16);
  STD_TORCH_CHECK(p.num_pixels * row < (int64_t(1) << 31),
                  "msda: S * N * (D + 16) must be below 2^31 on the CPU");
  set_levels(call, level_sizes_hw, p.num_pixels);
  call.type = value_type_of(value);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t pairs = p.num_images * p.num_heads;
  // a few more items than threads even out the last one
  p.num_chunks = pairs == 0 || pairs % threads == 0 ? 1 : (2 * threads + pairs - 1) / pairs;
  p.value = call.keep(value);
  p.samples = call.keep(samples);
  p.weights = call.keep(weights);
}

void prepare_fused(Call& call, const Tensor& value, const Tensor& reference) {
  check_arithmetic_type(value, reference, "reference");
  STD_TORCH_CHECK(reference.dim() == 4, "msda: reference must have 4 dimensions");
  call.problem.form = reference.size(3) == 4 ? SampleForm::kOffsetsFromBoxes
                                             : SampleForm::kOffsetsFromPoints;
  call.problem.reference = call.keep(reference);
}

void run(MsdaRange range, const MsdaProblem& problem, int64_t items, int64_t grain) {
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    STD_TORCH_CHECK(range(problem, begin, end), "msda: out of memory for the packed rows");
  });
}

Tensor run_forward(Call& call, const Tensor& value) {
  MsdaProblem& p = call.problem;
  Tensor output = torch::stable::new_empty(
      value, {p.num_images, p.num_queries, p.num_heads * p.head_dim});
  p.output = output.mutable_data_ptr();
  run(active_kernels()->forward[int(call.type)], p, p.num_images * p.num_heads * p.num_chunks, 1);
  return output;
}

void run_backward(Call& call, const Tensor& grad_output, const Tensor& grad_value,
                  const Tensor& grad_samples, const Tensor& grad_weights) {
  MsdaProblem& p = call.problem;
  STD_TORCH_CHECK(grad_output.numel() == p.num_images * p.num_queries * p.num_heads * p.head_dim,
                  "msda: grad_output must be [B, Q, N * D]");
  p.grad_output = call.keep(grad_output);
  p.grad_value = grad_value.mutable_data_ptr();
  p.grad_samples = grad_samples.mutable_data_ptr();
  p.grad_weights = grad_weights.mutable_data_ptr();
  run(active_kernels()->backward[int(call.type)], p, p.num_images * p.num_heads * p.num_levels, 1);
}

Tensor empty_like_contiguous(const Tensor& tensor) {
  return torch::stable::new_empty(tensor, tensor.sizes());
}

Tensor msda_forward(const Tensor& value, std::vector<int64_t> level_sizes_hw,
                    const Tensor& points_xy01, const Tensor& weights) {
  Call call;
  prepare(call, value, level_sizes_hw, points_xy01, weights);
  return run_forward(call, value);
}

std::tuple<Tensor, Tensor, Tensor> msda_backward(const Tensor& grad_output, const Tensor& value,
                                                 std::vector<int64_t> level_sizes_hw,
                                                 const Tensor& points_xy01, const Tensor& weights,
                                                 bool /*deterministic: always*/) {
  Call call;
  prepare(call, value, level_sizes_hw, points_xy01, weights);
  Tensor grad_value = empty_like_contiguous(value);
  Tensor grad_points = empty_like_contiguous(points_xy01);
  Tensor grad_weights = empty_like_contiguous(weights);
  run_backward(call, grad_output, grad_value, grad_points, grad_weights);
  return {grad_value, grad_points, grad_weights};
}

Tensor msda_fused_forward(const Tensor& value, std::vector<int64_t> level_sizes_hw,
                          const Tensor& reference, const Tensor& offsets, const Tensor& logits) {
  Call call;
  prepare(call, value, level_sizes_hw, offsets, logits);
  prepare_fused(call, value, reference);
  return run_forward(call, value);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> msda_fused_backward(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> level_sizes_hw,
    const Tensor& reference, const Tensor& offsets, const Tensor& logits,
    bool /*deterministic: always*/) {
  Call call;
  prepare(call, value, level_sizes_hw, offsets, logits);
  prepare_fused(call, value, reference);
  Tensor grad_value = empty_like_contiguous(value);
  Tensor grad_reference = empty_like_contiguous(reference);
  Tensor grad_offsets = empty_like_contiguous(offsets);
  Tensor grad_logits = empty_like_contiguous(logits);
  run_backward(call, grad_output, grad_value, grad_offsets, grad_logits);
  MsdaProblem& p = call.problem;
  p.grad_reference = grad_reference.mutable_data_ptr();
  run(active_kernels()->backward_finish[int(call.type)], p, p.num_images * p.num_queries, 64);
  return {grad_value, grad_reference, grad_offsets, grad_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(xdecoder, CPU, m) {
  m.impl("msda_forward", TORCH_BOX(&msda_forward));
  m.impl("msda_backward", TORCH_BOX(&msda_backward));
  m.impl("msda_fused_forward", TORCH_BOX(&msda_fused_forward));
  m.impl("msda_fused_backward", TORCH_BOX(&msda_fused_backward));
}

// For the capability table, and for tests that run every instruction set in one process.
extern "C" __attribute__((visibility("default"))) const char* xdec_instruction_set() {
  return active_kernels()->name;
}

extern "C" __attribute__((visibility("default"))) const char* xdec_limit_instruction_set(
    const char* name) {
  const MsdaKernels* found = find_kernels(name);
  if (found != nullptr) active_kernels() = found;
  return active_kernels()->name;
}
