// Entry points of the CPU kernels for the Torch side; no Torch types.
#pragma once

#include <memory>
#include <vector>

#include "kernel_args.h"

namespace masked_xattn {

// how the rows of every image of a batch are served, and the lists that this needs
class BatchPlan {
 public:
  BatchPlan(const AttentionShape& shape, const int32_t* bits, const bool* row_any);
  RowPlan image(int64_t b) const;

 private:
  void add_image(const AttentionShape& shape, const int32_t* bits, const bool* row_any);

  std::vector<int32_t> sparse_rows_, dense_rows_, list_keys_;
  // pairs (start in list_keys, number of keys) of each sparse row
  std::vector<int64_t> list_starts_;
  std::vector<int64_t> num_listed_;
  std::vector<int64_t> first_sparse_{0}, first_dense_{0};
};

// align_corners=False; bilinear without antialiasing, bicubic with it, as PyTorch defines them
Taps resize_taps(int64_t size_in, int64_t size_out, bool is_bicubic);

// the kernels of the best instruction set that this processor has
const KernelTable& kernel_table();

}  // namespace masked_xattn
