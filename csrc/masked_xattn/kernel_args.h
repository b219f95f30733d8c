// Arguments of the CPU kernels: raw pointers, sizes and strides in elements; no Torch types.
#pragma once

#include <cstdint>
#include <vector>

namespace masked_xattn {

// [C, K] per image; keys are contiguous, channels have a stride
struct MaskBitsArgs {
  const float* embed;
  const float* features;
  int32_t* bits;
  bool* row_any;
  bool* tile_any;
  int64_t batch, rows, unmasked_rows, channels, keys, words;
  int64_t embed_stride_b, embed_stride_r;
  int64_t features_stride_b, features_stride_c;
};

// one [B, N, rows, D] operand whose last dimension is contiguous
struct Operand {
  const float* data;
  int64_t stride_b, stride_n, stride_row;

  const float* head(int64_t b, int64_t n) const { return data + b * stride_b + n * stride_n; }
};

struct AttentionShape {
  int64_t batch, heads, queries, keys, dim, words;
};

struct ForwardArgs {
  AttentionShape shape;
  Operand q, k, v;
  const int32_t* bits;
  const bool* row_any;
  // contiguous [B, N, Q, D] and [B, N, Q]; lse is in units of log2
  float* out;
  float* lse;
};

struct BackwardArgs {
  AttentionShape shape;
  Operand q, k, v, grad_out;
  const int32_t* bits;
  const bool* row_any;
  const float* out;
  const float* lse;
  // contiguous; grad_k and grad_v hold zeros
  float* grad_q;
  float* grad_k;
  float* grad_v;
};

// How the query rows of one image are served; shared by all heads.
// Rows with few visible keys walk a list of keys; the others go in groups of 4 over key tiles.
struct RowPlan {
  const int32_t* sparse_rows;
  const int64_t* list_starts;
  const int32_t* list_keys;
  int64_t num_sparse;
  // keys in all lists of the image
  int64_t num_listed;
  const int32_t* dense_rows;
  int64_t num_dense;
};

// Output i of one axis is the sum of weights[i][t] * input[starts[i] + t].
struct Taps {
  std::vector<int64_t> starts;
  std::vector<float> weights;
  int64_t count;
};

// contiguous planes
struct ResizeArgs {
  const float* source;
  float* target;
  int64_t height_in, width_in, height_out, width_out;
  const Taps* vertical;
  const Taps* horizontal;
};

// one instruction set's kernels; each call serves one panel of keys or one (image, head)
struct KernelTable {
  void (*mask_bits_panel)(const MaskBitsArgs&, int64_t b, int64_t panel);
  void (*resize_plane)(const ResizeArgs&, int64_t plane);
  void (*forward_head)(const ForwardArgs&, const RowPlan&, int64_t b, int64_t n);
  void (*backward_head)(const BackwardArgs&, const RowPlan&, int64_t b, int64_t n);
};

// lists of keys are padded to whole vectors of any instruction set
constexpr int64_t kListMultiple = 16;
constexpr int64_t kTileRows = 4;
constexpr int64_t kTileKeys = 64;
constexpr int64_t kWordBits = 32;

}  // namespace masked_xattn
