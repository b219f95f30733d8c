// The CPU implementations of xdecoder::mask_bits and xdecoder::masked_xattn_*, stable ABI.
// Schemas are defined by kernels/masked_xattn/register.py; arguments are checked in api.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <tuple>

#include "masked_xattn_cpu.h"

namespace {

using masked_xattn::AttentionShape;
using masked_xattn::BatchPlan;
using masked_xattn::Operand;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor empty_of(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  std::vector<int64_t> shape(sizes);
  return torch::stable::empty({shape.data(), shape.size()}, dtype);
}

void check_float(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float, "masked_xattn: ",
                  name, " must be float32 on the CPU. Call it through kernels, which converts.");
  STD_TORCH_CHECK(tensor.size(tensor.dim() - 1) <= 1 || tensor.stride(tensor.dim() - 1) == 1,
                  "masked_xattn: the last dimension of ", name, " must be contiguous.");
}

void check_contiguous(const Tensor& tensor, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == dtype,
                  "masked_xattn: ", name, " must be contiguous on the CPU, of its dtype.");
}

Operand operand(const Tensor& tensor, const char* name) {
  check_float(tensor, name);
  return {static_cast<const float*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1),
          tensor.stride(2)};
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

AttentionShape attention_shape(const Tensor& q, const Tensor& k, const Tensor& bits,
                               const Tensor& row_any) {
  check_contiguous(bits, ScalarType::Int, "bits");
  check_contiguous(row_any, ScalarType::Bool, "row_any");
  const AttentionShape shape{q.size(0), q.size(1), q.size(2), k.size(2), q.size(3), bits.size(2)};
  STD_TORCH_CHECK(shape.dim >= 1 && shape.dim <= 128,
                  "masked_xattn: the head dim must be in 1..128; got ", shape.dim, ".");
  return shape;
}

Tensor resize_features(const Tensor& features, int64_t height, int64_t width, bool is_bicubic) {
  check_contiguous(features, ScalarType::Float, "features");
  const int64_t batch = features.size(0), channels = features.size(1);
  Tensor out = empty_of({batch, channels, height, width}, ScalarType::Float);
  const masked_xattn::Taps vertical =
      masked_xattn::resize_taps(features.size(2), height, is_bicubic);
  const masked_xattn::Taps horizontal =
      masked_xattn::resize_taps(features.size(3), width, is_bicubic);
  const masked_xattn::ResizeArgs args{static_cast<const float*>(features.const_data_ptr()),
                                      mutable_data<float>(out),
                                      features.size(2),
                                      features.size(3),
                                      height,
                                      width,
                                      &vertical,
                                      &horizontal};
  const auto& kernels = masked_xattn::kernel_table();
  torch::stable::parallel_for(0, batch * channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) kernels.resize_plane(args, plane);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> mask_bits(const Tensor& embed, const Tensor& features,
                                             int64_t num_unmasked_rows) {
  check_float(embed, "mask_embed");
  check_float(features, "features");
  const int64_t batch = embed.size(0), rows = embed.size(1), keys = features.size(2);
  const int64_t all_rows = rows + num_unmasked_rows;
  const int64_t words = (keys + masked_xattn::kWordBits - 1) / masked_xattn::kWordBits;
  const int64_t panels = (keys + masked_xattn::kTileKeys - 1) / masked_xattn::kTileKeys;
  const int64_t row_tiles = (all_rows + masked_xattn::kTileRows - 1) / masked_xattn::kTileRows;
  Tensor bits = empty_of({batch, all_rows, words}, ScalarType::Int);
  Tensor row_any = empty_of({batch, all_rows}, ScalarType::Bool);
  Tensor tile_any = empty_of({batch, row_tiles, panels}, ScalarType::Bool);
  const masked_xattn::MaskBitsArgs args{static_cast<const float*>(embed.const_data_ptr()),
                                        static_cast<const float*>(features.const_data_ptr()),
                                        mutable_data<int32_t>(bits),
                                        mutable_data<bool>(row_any),
                                        mutable_data<bool>(tile_any),
                                        batch,
                                        rows,
                                        num_unmasked_rows,
                                        embed.size(2),
                                        keys,
                                        words,
                                        embed.stride(0),
                                        embed.stride(1),
                                        features.stride(0),
                                        features.stride(1)};
  const auto& kernels = masked_xattn::kernel_table();
  torch::stable::parallel_for(0, batch * panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      kernels.mask_bits_panel(args, task / panels, task % panels);
  });
  for (int64_t row = 0; row < batch * all_rows; ++row) {
    const int32_t* row_words = args.bits + row * words;
    int32_t any = 0;
    for (int64_t w = 0; w < words; ++w) any |= row_words[w];
    args.row_any[row] = any != 0;
  }
  return {bits, row_any, tile_any};
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Tensor& bits, const Tensor& row_any) {
  const AttentionShape shape = attention_shape(q, k, bits, row_any);
  Tensor out = empty_of({shape.batch, shape.heads, shape.queries, shape.dim}, ScalarType::Float);
  Tensor lse = empty_of({shape.batch, shape.heads, shape.queries}, ScalarType::Float);
  masked_xattn::ForwardArgs args{shape,
                                 operand(q, "q"),
                                 operand(k, "k"),
                                 operand(v, "v"),
                                 static_cast<const int32_t*>(bits.const_data_ptr()),
                                 static_cast<const bool*>(row_any.const_data_ptr()),
                                 mutable_data<float>(out),
                                 mutable_data<float>(lse)};
  const BatchPlan plan(shape, args.bits, args.row_any);
  const auto& kernels = masked_xattn::kernel_table();
  torch::stable::parallel_for(0, shape.batch * shape.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      kernels.forward_head(args, plan.image(head / shape.heads), head / shape.heads,
                           head % shape.heads);
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& q,
                                            const Tensor& k, const Tensor& v, const Tensor& out,
                                            const Tensor& lse, const Tensor& bits,
                                            const Tensor& row_any) {
  const AttentionShape shape = attention_shape(q, k, bits, row_any);
  check_contiguous(out, ScalarType::Float, "out");
  check_contiguous(lse, ScalarType::Float, "lse");
  Tensor grad_q = empty_of({shape.batch, shape.heads, shape.queries, shape.dim}, ScalarType::Float);
  Tensor grad_k = empty_of({shape.batch, shape.heads, shape.keys, shape.dim}, ScalarType::Float);
  Tensor grad_v = empty_of({shape.batch, shape.heads, shape.keys, shape.dim}, ScalarType::Float);
  torch::stable::zero_(grad_k);
  torch::stable::zero_(grad_v);
  masked_xattn::BackwardArgs args{shape,
                                  operand(q, "q"),
                                  operand(k, "k"),
                                  operand(v, "v"),
                                  operand(grad_out, "grad_out"),
                                  static_cast<const int32_t*>(bits.const_data_ptr()),
                                  static_cast<const bool*>(row_any.const_data_ptr()),
                                  static_cast<const float*>(out.const_data_ptr()),
                                  static_cast<const float*>(lse.const_data_ptr()),
                                  mutable_data<float>(grad_q),
                                  mutable_data<float>(grad_k),
                                  mutable_data<float>(grad_v)};
  const BatchPlan plan(shape, args.bits, args.row_any);
  const auto& kernels = masked_xattn::kernel_table();
  torch::stable::parallel_for(0, shape.batch * shape.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      kernels.backward_head(args, plan.image(head / shape.heads), head / shape.heads,
                            head % shape.heads);
  });
  return {grad_q, grad_k, grad_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(xdecoder, CPU, m) {
  m.impl("resize_features", TORCH_BOX(&resize_features));
  m.impl("mask_bits", TORCH_BOX(&mask_bits));
  m.impl("masked_xattn_forward", TORCH_BOX(&forward));
  m.impl("masked_xattn_backward", TORCH_BOX(&backward));
}
