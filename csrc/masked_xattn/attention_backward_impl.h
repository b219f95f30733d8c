// Backward of attention_impl.h: weights are recomputed from the log-sum-exp (in units of log2).
// Included once per instruction set, inside its namespace; hence no include guard.
//
//   p = 2^(s - lse),  ds = p (grad_out . v - grad_out . out),  grad_v += p grad_out,
//   grad_k += ds q scale,  grad_q += ds k scale.   q is held times scale * log2(e), so ds is
//   held times ln 2 and grad_q gets scale * log2(e) at the end.

constexpr float kLn2 = 0.69314718055994531f;

template <int NV>
struct HeadGradients {
  HeadRows k, v;
  float* grad_k;
  float* grad_v;
  float* grad_q;
};

template <int NV>
static void backward_sparse_row(const BackwardArgs& args, const int32_t* keys, int64_t count,
                                const HeadGradients<NV>& head, const float* q_row,
                                const float* grad_out_row, int64_t flat_row) {
  const int64_t dim = args.shape.dim;
  Vec q[NV], out[NV], grad_out[NV];
  load_row(q, q_row, dim, softmax_factor(dim));
  load_row(grad_out, grad_out_row, dim, 1.0f);
  load_row(out, args.out + flat_row * dim, dim, 1.0f);
  Vec product = out[0] * grad_out[0];
  for (int d = 1; d < NV; ++d) product = fma(out[d], grad_out[d], product);
  const Vec delta = splat(reduce_add(product));
  const Vec lse = splat(args.lse[flat_row]);
  Vec grad_q[NV] = {};
  alignas(64) float p[kLanes], ds[kLanes];
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec weight = exp2_vec(dot_listed(q, head.k, keys + j) - lse);
    store(p, weight);
    store(ds, weight * (dot_listed(grad_out, head.v, keys + j) - delta) * splat(kLn2));
    const int64_t in_chunk = std::min(kLanes, count - j);
    for (int64_t i = 0; i < in_chunk; ++i) {
      const int64_t key = keys[j + i];
      const float* k_row = head.k.row(key);
      float* grad_k = head.grad_k + key * NV * kLanes;
      float* grad_v = head.grad_v + key * NV * kLanes;
      const Vec p_i = splat(p[i]), ds_i = splat(ds[i]);
      for (int d = 0; d < NV; ++d) {
        grad_q[d] = fma(ds_i, load(k_row + d * kLanes), grad_q[d]);
        store(grad_k + d * kLanes, fma(ds_i, q[d], load(grad_k + d * kLanes)));
        store(grad_v + d * kLanes, fma(p_i, grad_out[d], load(grad_v + d * kLanes)));
      }
    }
  }
  for (int d = 0; d < NV; ++d) grad_q[d] *= splat(softmax_factor(dim));
  store_row(head.grad_q + flat_row * dim, grad_q, dim);
}

// The order of tile_product: a row whose weight lies on one key then gets a gradient of exactly 0,
// as grad_out . v and grad_out . out are the same sum. (Lists of keys: reduce_add and dot_listed.)
XATTN_INLINE float dot_in_order(const float* x, const float* y, int64_t dim) {
  Vec sum = {};
  for (int64_t d = 0; d < dim; ++d) sum = fma(splat(x[d]), splat(y[d]), sum);
  return sum[0];
}

template <int NV>
struct DenseGradientGroup {
  // acc of `forward` holds grad_q
  DenseGroup<NV> forward;
  alignas(64) float grad_out[kTileRows * NV * kLanes];
  float delta[kTileRows];
  float lse[kTileRows];
};

template <int NV>
static void start_gradient_group(DenseGradientGroup<NV>& group, const BackwardArgs& args,
                                 const RowPlan& plan, int64_t first, int64_t b, int64_t n) {
  const int64_t dim = args.shape.dim;
  start_group(group.forward, args, plan, first, b, n);
  for (int64_t r = 0; r < kTileRows; ++r) {
    const int32_t row = group.forward.row[r];
    const int64_t flat_row = (b * args.shape.heads + n) * args.shape.queries + row;
    Vec grad_out[NV];
    load_row(grad_out, args.grad_out.head(b, n) + row * args.grad_out.stride_row, dim, 1.0f);
    for (int d = 0; d < NV; ++d) store(group.grad_out + (r * NV + d) * kLanes, grad_out[d]);
    group.delta[r] = dot_in_order(group.grad_out + r * NV * kLanes, args.out + flat_row * dim, dim);
    group.lse[r] = args.lse[flat_row];
  }
}

// scores -> p and grad_p -> ds, in place
template <int NV>
XATTN_INLINE void gradient_tile(const DenseGradientGroup<NV>& group, int r, uint64_t visible,
                                float* scores, float* grad_p) {
  const Vec lse = splat(group.lse[r]), delta = splat(group.delta[r]);
  for (int j = 0; j < kTileVecs; ++j) {
    const IVec is_visible = expand_mask(visible >> (j * kLanes));
    Vec p = exp2_vec(load(scores + j * kLanes) - lse);
    Vec ds = p * (load(grad_p + j * kLanes) - delta) * splat(kLn2);
    store(scores + j * kLanes, is_visible ? p : Vec{});
    store(grad_p + j * kLanes, is_visible ? ds : Vec{});
  }
}

template <int NV>
static void backward_dense(const BackwardArgs& args, const RowPlan& plan, int64_t b, int64_t n,
                           const HeadGradients<NV>& head) {
  const AttentionShape& shape = args.shape;
  const int64_t num_groups = (plan.num_dense + kTileRows - 1) / kTileRows;
  thread_local std::vector<DenseGradientGroup<NV>> groups;
  groups.resize(num_groups);
  for (int64_t g = 0; g < num_groups; ++g)
    start_gradient_group(groups[g], args, plan, g * kTileRows, b, n);
  alignas(64) float k_tile[NV * kLanes * kTileKeys];
  alignas(64) float v_tile[NV * kLanes * kTileKeys];
  alignas(64) float scores[kTileRows * kTileKeys];
  alignas(64) float grad_p[kTileRows * kTileKeys];
  for (int64_t first_key = 0; first_key < shape.keys; first_key += kTileKeys) {
    const int64_t count = std::min(kTileKeys, shape.keys - first_key);
    bool has_tile = false;
    for (auto& group : groups) {
      uint64_t visible[kTileRows];
      if (!group_bits(group.forward, shape.words, first_key / kTileKeys, count, visible)) continue;
      if (!has_tile) {
        transpose_tile<NV>(head.k, first_key, count, k_tile);
        transpose_tile<NV>(head.v, first_key, count, v_tile);
      }
      has_tile = true;
      tile_product<NV>(group.forward.vectors, k_tile, scores);
      tile_product<NV>(group.grad_out, v_tile, grad_p);
      for (int r = 0; r < kTileRows; ++r) {
        // spare rows must add nothing
        const uint64_t own = r < group.forward.num_rows ? visible[r] : 0;
        gradient_tile(group, r, own, scores + r * kTileKeys, grad_p + r * kTileKeys);
      }
      tile_accumulate<NV>(grad_p, head.k, first_key, count, group.forward.acc);
      tile_scatter<NV>(grad_p, group.forward.vectors, count,
                       head.grad_k + first_key * NV * kLanes);
      tile_scatter<NV>(scores, group.grad_out, count, head.grad_v + first_key * NV * kLanes);
    }
  }
  for (auto& group : groups) {
    for (int64_t r = 0; r < group.forward.num_rows; ++r) {
      Vec grad_q[NV];
      for (int d = 0; d < NV; ++d)
        grad_q[d] = load(group.forward.acc + (r * NV + d) * kLanes) *
                    splat(softmax_factor(shape.dim));
      const int64_t flat_row = (b * shape.heads + n) * shape.queries + group.forward.row[r];
      store_row(head.grad_q + flat_row * shape.dim, grad_q, shape.dim);
    }
  }
}

// the zeroed gradient rows of one head, padded to whole vectors
template <int NV>
XATTN_INLINE float* padded_gradient(float* head_rows, int64_t keys, int64_t dim,
                                    std::vector<float>& buffer) {
  if (dim == NV * kLanes) return head_rows;
  buffer.assign(keys * NV * kLanes, 0.0f);
  return buffer.data();
}

template <int NV>
XATTN_INLINE void unpad_gradient(const float* padded, float* head_rows, int64_t keys, int64_t dim) {
  if (padded == head_rows) return;
  for (int64_t i = 0; i < keys; ++i)
    std::memcpy(head_rows + i * dim, padded + i * NV * kLanes, dim * sizeof(float));
}

template <int NV>
static void backward_head_dim(const BackwardArgs& args, const RowPlan& plan, int64_t b, int64_t n) {
  const AttentionShape& shape = args.shape;
  thread_local std::vector<float> k_buffer, v_buffer, grad_k_buffer, grad_v_buffer;
  const int64_t head_index = b * shape.heads + n;
  float* grad_k = args.grad_k + head_index * shape.keys * shape.dim;
  float* grad_v = args.grad_v + head_index * shape.keys * shape.dim;
  HeadGradients<NV> head;
  head.k = compact_rows<NV>(args.k, b, n, shape.keys, shape.dim, plan.num_listed, k_buffer);
  head.v = compact_rows<NV>(args.v, b, n, shape.keys, shape.dim, plan.num_listed, v_buffer);
  head.grad_k = padded_gradient<NV>(grad_k, shape.keys, shape.dim, grad_k_buffer);
  head.grad_v = padded_gradient<NV>(grad_v, shape.keys, shape.dim, grad_v_buffer);
  head.grad_q = args.grad_q;
  for (int64_t i = 0; i < plan.num_sparse; ++i) {
    const int64_t row = plan.sparse_rows[i];
    backward_sparse_row(args, plan.list_keys + plan.list_starts[2 * i],
                        plan.list_starts[2 * i + 1], head,
                        args.q.head(b, n) + row * args.q.stride_row,
                        args.grad_out.head(b, n) + row * args.grad_out.stride_row,
                        head_index * shape.queries + row);
  }
  if (plan.num_dense > 0) backward_dense(args, plan, b, n, head);
  unpad_gradient<NV>(head.grad_k, grad_k, shape.keys, shape.dim);
  unpad_gradient<NV>(head.grad_v, grad_v, shape.keys, shape.dim);
}

static void backward_head(const BackwardArgs& args, const RowPlan& plan, int64_t b, int64_t n) {
  const int64_t dim = args.shape.dim;
  if (dim <= 16) return backward_head_dim<16 / kLanes>(args, plan, b, n);
  if (dim <= 32) return backward_head_dim<32 / kLanes>(args, plan, b, n);
  if (dim <= 64) return backward_head_dim<64 / kLanes>(args, plan, b, n);
  return backward_head_dim<128 / kLanes>(args, plan, b, n);
}
