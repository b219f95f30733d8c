// Attention of one (image, head) under packed bits, forward and backward.
// Included once per instruction set, inside its namespace; hence no include guard.
//
// Rows with few visible keys ("sparse") walk their list of keys: work is the number of set bits.
// The other rows ("dense") go four at a time over tiles of 64 keys, online softmax; a tile that
// none of the four sees is skipped. Everything a call writes belongs to its (image, head).

struct HeadRows {
  const float* data;
  int64_t stride;

  const float* row(int64_t i) const { return data + i * stride; }
};

// Rows of [count, dim] as they are when lanes divide dim, else copied with zeros behind.
// Rows far apart share few cache sets: when lists visit them often, a compact copy is cheaper
// (at 128 x 128 keys and 15 % visible 22 ms against 10 ms).
template <int NV>
XATTN_INLINE HeadRows compact_rows(const Operand& operand, int64_t b, int64_t n, int64_t count,
                                   int64_t dim, int64_t num_visits, std::vector<float>& buffer) {
  const float* source = operand.head(b, n);
  const bool is_compact = operand.stride_row == dim || num_visits < kVisitsToCompact * count;
  if (dim == NV * kLanes && is_compact) return {source, operand.stride_row};
  buffer.assign(count * NV * kLanes, 0.0f);
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(&buffer[i * NV * kLanes], source + i * operand.stride_row, dim * sizeof(float));
  return {buffer.data(), NV * kLanes};
}

template <int NV>
XATTN_INLINE void load_row(Vec (&target)[NV], const float* source, int64_t dim, float factor) {
  alignas(64) float padded[NV * kLanes] = {};
  std::memcpy(padded, source, dim * sizeof(float));
  for (int i = 0; i < NV; ++i) target[i] = load(padded + i * kLanes) * splat(factor);
}

template <int NV>
XATTN_INLINE void store_row(float* target, const Vec (&source)[NV], int64_t dim) {
  alignas(64) float padded[NV * kLanes];
  for (int i = 0; i < NV; ++i) store(padded + i * kLanes, source[i]);
  std::memcpy(target, padded, dim * sizeof(float));
}

// dot products of one vector with kLanes listed rows
template <int NV>
XATTN_INLINE Vec dot_listed(const Vec (&vector)[NV], HeadRows rows, const int32_t* keys) {
  Vec sums[kLanes];
  for (int j = 0; j < kLanes; ++j) {
    const float* row = rows.row(keys[j]);
    Vec sum = vector[0] * load(row);
    for (int i = 1; i < NV; ++i) sum = fma(vector[i], load(row + i * kLanes), sum);
    sums[j] = sum;
  }
  return sum_rows(sums);
}

template <int NV>
static void forward_sparse_row(const ForwardArgs& args, const int32_t* keys, int64_t count,
                               HeadRows k, HeadRows v, const float* q_row, float* scores,
                               float* out_row, float* lse) {
  Vec q[NV];
  load_row(q, q_row, args.shape.dim, softmax_factor(args.shape.dim));
  const Vec hidden = splat(-INFINITY);
  Vec highest = splat(kLowestScore);
  for (int64_t j = 0; j < count; j += kLanes) {
    Vec s = dot_listed(q, k, keys + j);
    s = lanes_below(count - j) ? s : hidden;
    highest = vmax(s, highest);
    store(scores + j, s);
  }
  const Vec top = splat(reduce_max(highest));
  Vec sum = {};
  Vec acc[NV] = {};
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec p = exp2_vec(load(scores + j) - top);
    sum += p;
    store(scores + j, p);
    const int64_t in_chunk = std::min(kLanes, count - j);
    for (int64_t i = 0; i < in_chunk; ++i) {
      const float* row = v.row(keys[j + i]);
      const Vec weight = splat(scores[j + i]);
      for (int d = 0; d < NV; ++d) acc[d] = fma(weight, load(row + d * kLanes), acc[d]);
    }
  }
  const float total = reduce_add(sum);
  for (int d = 0; d < NV; ++d) acc[d] *= splat(1.0f / total);
  store_row(out_row, acc, args.shape.dim);
  *lse = top[0] + std::log2(total);
}

// [64, NV*16] rows starting at first_key turned to [NV*16, 64]; zeros past the last key
template <int NV>
XATTN_INLINE void transpose_tile(HeadRows rows, int64_t first_key, int64_t count, float* tile) {
  for (int64_t j = 0; j < kTileKeys; ++j) {
    if (j >= count) {
      for (int64_t d = 0; d < NV * kLanes; ++d) tile[d * kTileKeys + j] = 0.0f;
      continue;
    }
    const float* row = rows.row(first_key + j);
    for (int64_t d = 0; d < NV * kLanes; ++d) tile[d * kTileKeys + j] = row[d];
  }
}

// result[4][64] = vectors[4][NV*16] x tile[NV*16][64]
template <int NV>
XATTN_INLINE void tile_product(const float* vectors, const float* tile, float* result) {
  for (int strip = 0; strip < kTileVecs; strip += kStrip) {
    Vec acc[kTileRows][kStrip] = {};
    const float* column = tile + strip * kLanes;
    for (int64_t d = 0; d < NV * kLanes; ++d) {
      Vec keys[kStrip];
      for (int j = 0; j < kStrip; ++j) keys[j] = load(column + d * kTileKeys + j * kLanes);
      for (int r = 0; r < kTileRows; ++r) {
        const Vec weight = splat(vectors[r * NV * kLanes + d]);
        for (int j = 0; j < kStrip; ++j) acc[r][j] = fma(weight, keys[j], acc[r][j]);
      }
    }
    for (int r = 0; r < kTileRows; ++r)
      for (int j = 0; j < kStrip; ++j)
        store(result + r * kTileKeys + (strip + j) * kLanes, acc[r][j]);
  }
}

// acc[4][NV*16] += weights[4][64] x rows[first_key .. first_key + count)
template <int NV>
XATTN_INLINE void tile_accumulate(const float* weights, HeadRows rows, int64_t first_key,
                                  int64_t count, float* acc_rows) {
  constexpr int kWidth = NV < kStrip ? NV : kStrip;
  for (int first = 0; first < NV; first += kWidth) {
    Vec acc[kTileRows][kWidth];
    float* target = acc_rows + first * kLanes;
    for (int r = 0; r < kTileRows; ++r)
      for (int d = 0; d < kWidth; ++d) acc[r][d] = load(target + (r * NV + d) * kLanes);
    for (int64_t j = 0; j < count; ++j) {
      const float* row = rows.row(first_key + j) + first * kLanes;
      Vec value[kWidth];
      for (int d = 0; d < kWidth; ++d) value[d] = load(row + d * kLanes);
      for (int r = 0; r < kTileRows; ++r) {
        const Vec weight = splat(weights[r * kTileKeys + j]);
        for (int d = 0; d < kWidth; ++d) acc[r][d] = fma(weight, value[d], acc[r][d]);
      }
    }
    for (int r = 0; r < kTileRows; ++r)
      for (int d = 0; d < kWidth; ++d) store(target + (r * NV + d) * kLanes, acc[r][d]);
  }
}

// target[64 rows] += weights[4][64]^T x vectors[4][NV*16]; target rows are contiguous
template <int NV>
XATTN_INLINE void tile_scatter(const float* weights, const float* vectors, int64_t count,
                               float* target) {
  constexpr int kWidth = NV < kStrip ? NV : kStrip;
  for (int first = 0; first < NV; first += kWidth) {
    Vec rows[kTileRows][kWidth];
    for (int r = 0; r < kTileRows; ++r)
      for (int d = 0; d < kWidth; ++d)
        rows[r][d] = load(vectors + (r * NV + first + d) * kLanes);
    for (int64_t j = 0; j < count; ++j) {
      float* row = target + (j * NV + first) * kLanes;
      for (int d = 0; d < kWidth; ++d) {
        Vec acc = load(row + d * kLanes);
        for (int r = 0; r < kTileRows; ++r)
          acc = fma(splat(weights[r * kTileKeys + j]), rows[r][d], acc);
        store(row + d * kLanes, acc);
      }
    }
  }
}

// the 64 visibility bits of one row in one tile; a row without any bit of its own sees all
XATTN_INLINE uint64_t tile_bits(const int32_t* bits, bool has_own, int64_t words, int64_t tile,
                                int64_t count) {
  const uint64_t valid = count == kTileKeys ? ~0ull : (1ull << count) - 1;
  if (!has_own) return valid;
  uint64_t visible = static_cast<uint32_t>(bits[2 * tile]);
  if (2 * tile + 1 < words) visible |= uint64_t(static_cast<uint32_t>(bits[2 * tile + 1])) << 32;
  return visible & valid;
}

// online softmax state of the dense rows: four rows of one group side by side
template <int NV>
struct DenseGroup {
  alignas(64) float vectors[kTileRows * NV * kLanes];
  alignas(64) float acc[kTileRows * NV * kLanes];
  alignas(64) float sum[kTileRows][kLanes];
  float top[kTileRows];
  const int32_t* bits[kTileRows];
  bool has_own[kTileRows];
  int32_t row[kTileRows];
  int64_t num_rows;
};

template <int NV, class Args>
XATTN_INLINE void start_group(DenseGroup<NV>& group, const Args& args, const RowPlan& plan,
                              int64_t first, int64_t b, int64_t n) {
  const AttentionShape& shape = args.shape;
  group = DenseGroup<NV>{};
  group.num_rows = std::min(kTileRows, plan.num_dense - first);
  for (int64_t r = 0; r < kTileRows; ++r) {
    // spare rows repeat the last one and are never written
    const int32_t row = plan.dense_rows[std::min(first + r, plan.num_dense - 1)];
    Vec q[NV];
    load_row(q, args.q.head(b, n) + row * args.q.stride_row, shape.dim, softmax_factor(shape.dim));
    for (int d = 0; d < NV; ++d) store(group.vectors + (r * NV + d) * kLanes, q[d]);
    group.top[r] = kLowestScore;
    group.bits[r] = args.bits + (b * shape.queries + row) * shape.words;
    group.has_own[r] = args.row_any[b * shape.queries + row];
    group.row[r] = row;
  }
}

// visibility of a tile for each row of a group; false when none sees any of it
template <int NV>
XATTN_INLINE bool group_bits(const DenseGroup<NV>& group, int64_t words, int64_t tile,
                             int64_t count, uint64_t* visible) {
  uint64_t any = 0;
  for (int r = 0; r < kTileRows; ++r) {
    visible[r] = tile_bits(group.bits[r], group.has_own[r], words, tile, count);
    any |= visible[r];
  }
  return any != 0;
}

template <int NV>
XATTN_INLINE void softmax_tile(DenseGroup<NV>& group, int r, uint64_t visible, float* scores) {
  const Vec hidden = splat(-INFINITY);
  Vec s[kTileVecs];
  Vec highest = hidden;
  for (int j = 0; j < kTileVecs; ++j) {
    s[j] = load(scores + j * kLanes);
    if (visible != ~0ull) s[j] = expand_mask(visible >> (j * kLanes)) ? s[j] : hidden;
    highest = vmax(s[j], highest);
  }
  const float tile_top = reduce_max(highest);
  Vec sum = load(group.sum[r]);
  if (tile_top > group.top[r]) {
    const Vec shrink = exp2_vec(splat(group.top[r] - tile_top));
    group.top[r] = tile_top;
    sum *= shrink;
    for (int d = 0; d < NV; ++d) {
      float* acc = group.acc + (r * NV + d) * kLanes;
      store(acc, load(acc) * shrink);
    }
  }
  const Vec top = splat(group.top[r]);
  for (int j = 0; j < kTileVecs; ++j) {
    const Vec p = exp2_vec(s[j] - top);
    sum += p;
    store(scores + j * kLanes, p);
  }
  store(group.sum[r], sum);
}

template <int NV>
static void finish_group(const ForwardArgs& args, const DenseGroup<NV>& group, int64_t head) {
  for (int64_t r = 0; r < group.num_rows; ++r) {
    const float total = reduce_add(load(group.sum[r]));
    Vec out[NV];
    for (int d = 0; d < NV; ++d)
      out[d] = load(group.acc + (r * NV + d) * kLanes) * splat(1.0f / total);
    const int64_t row = head * args.shape.queries + group.row[r];
    store_row(args.out + row * args.shape.dim, out, args.shape.dim);
    args.lse[row] = group.top[r] + std::log2(total);
  }
}

template <int NV>
static void forward_dense(const ForwardArgs& args, const RowPlan& plan, int64_t b, int64_t n,
                          HeadRows k, HeadRows v) {
  const AttentionShape& shape = args.shape;
  const int64_t num_groups = (plan.num_dense + kTileRows - 1) / kTileRows;
  thread_local std::vector<DenseGroup<NV>> groups;
  groups.resize(num_groups);
  for (int64_t g = 0; g < num_groups; ++g) start_group(groups[g], args, plan, g * kTileRows, b, n);
  alignas(64) float k_tile[NV * kLanes * kTileKeys];
  alignas(64) float scores[kTileRows * kTileKeys];
  for (int64_t first_key = 0; first_key < shape.keys; first_key += kTileKeys) {
    const int64_t count = std::min(kTileKeys, shape.keys - first_key);
    bool has_tile = false;
    for (auto& group : groups) {
      uint64_t visible[kTileRows];
      if (!group_bits(group, shape.words, first_key / kTileKeys, count, visible)) continue;
      if (!has_tile) transpose_tile<NV>(k, first_key, count, k_tile);
      has_tile = true;
      tile_product<NV>(group.vectors, k_tile, scores);
      for (int r = 0; r < kTileRows; ++r)
        softmax_tile(group, r, visible[r], scores + r * kTileKeys);
      tile_accumulate<NV>(scores, v, first_key, count, group.acc);
    }
  }
  for (auto& group : groups) finish_group(args, group, b * shape.heads + n);
}

template <int NV>
static void forward_head_dim(const ForwardArgs& args, const RowPlan& plan, int64_t b, int64_t n) {
  const AttentionShape& shape = args.shape;
  thread_local std::vector<float> k_buffer, v_buffer, scores;
  const HeadRows k = compact_rows<NV>(args.k, b, n, shape.keys, shape.dim,
                                        plan.num_listed, k_buffer);
  const HeadRows v = compact_rows<NV>(args.v, b, n, shape.keys, shape.dim,
                                        plan.num_listed, v_buffer);
  scores.resize(shape.keys + kListMultiple);
  const int64_t head = b * shape.heads + n;
  for (int64_t i = 0; i < plan.num_sparse; ++i) {
    const int64_t row = plan.sparse_rows[i];
    const int64_t out_row = head * shape.queries + row;
    const int32_t* keys = plan.list_keys + plan.list_starts[2 * i];
    forward_sparse_row<NV>(args, keys, plan.list_starts[2 * i + 1], k, v,
                           args.q.head(b, n) + row * args.q.stride_row, scores.data(),
                           args.out + out_row * shape.dim, args.lse + out_row);
  }
  if (plan.num_dense > 0) forward_dense<NV>(args, plan, b, n, k, v);
}

static void forward_head(const ForwardArgs& args, const RowPlan& plan, int64_t b, int64_t n) {
  const int64_t dim = args.shape.dim;
  if (dim <= 16) return forward_head_dim<16 / kLanes>(args, plan, b, n);
  if (dim <= 32) return forward_head_dim<32 / kLanes>(args, plan, b, n);
  if (dim <= 64) return forward_head_dim<64 / kLanes>(args, plan, b, n);
  return forward_head_dim<128 / kLanes>(args, plan, b, n);
}
