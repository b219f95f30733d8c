// The CPU kernels, once for every instruction set; see kernels/msda/README.md for the formulas.
// The file that includes this one defines XDEC_KERNELS, the name of its table of functions.
//
//   one work item = one (image, head)          one block of queries of it
//   value  [S, N, D] --pack--> rows [S, D]     samples: pixel x, y, weight   (16 at a time)
//                                              locate:  4 corner offsets and weights
//                                              gather:  4 rows x 4 accumulators per sample
#pragma once

#include <math.h>

#include "../common/vec.h"
#include "msda_cpu.h"

namespace {

// samples per block: the arrays of a block stay in the first-level cache
constexpr int64_t kBlockSamples = 384;

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

template <class C> inline int64_t padded(int64_t head_dim) {
  return (head_dim + kLanes<C> - 1) / kLanes<C> * kLanes<C>;
}

// exp for softmax: x <= 0; below -87 the result is at most 1.7e-38 and counts as zero.
// Cephes-style: 2^n * exp(r), |r| <= ln(2) / 2, Taylor to degree 7 (error < 1e-8).
inline float exp_nonpositive(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float n = floorf(clamped * 1.44269504f + 0.5f);
  const float r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
  float poly = 1.98412698e-4f;
  poly = poly * r + 1.38888889e-3f;
  poly = poly * r + 8.33333333e-3f;
  poly = poly * r + 4.16666667e-2f;
  poly = poly * r + 1.66666667e-1f;
  poly = poly * r + 0.5f;
  poly = poly * r + 1.0f;
  poly = poly * r + 1.0f;
  return poly * float_from_bits(uint32_t(int32_t(n) + 127) << 23);
}
inline double exp_nonpositive(double x) { return exp(x); }
inline float floor_of(float x) { return floorf(x); }
inline double floor_of(double x) { return floor(x); }

// In place, `rows` rows of `num_logits` logits one after another. A static count (0: any) lets
// the compiler keep a row in registers.
template <int kCount, class C>
void softmax_rows_of(int64_t rows, int64_t num_logits, C* __restrict probs) {
  const int64_t count = kCount > 0 ? kCount : num_logits;
  for (int64_t row = 0; row < rows; ++row) {
    C* __restrict p = probs + row * count;
    C largest = p[0];
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < count; ++i) largest = p[i] > largest ? p[i] : largest;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) p[i] -= largest;
  }
#pragma omp simd
  for (int64_t i = 0; i < rows * count; ++i) probs[i] = exp_nonpositive(probs[i]);
  for (int64_t row = 0; row < rows; ++row) {
    C* __restrict p = probs + row * count;
    C total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < count; ++i) total += p[i];
    const C scale = C(1) / total;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) p[i] *= scale;
  }
}

template <class C> void softmax_rows(int64_t rows, int64_t count, C* probs) {
  switch (count) {
    case 12: return softmax_rows_of<12>(rows, count, probs);
    case 16: return softmax_rows_of<16>(rows, count, probs);
    default: return softmax_rows_of<0>(rows, count, probs);
  }
}

template <class C> inline void copy_few(const C* __restrict from, int64_t count, C* __restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// Samples [first, first + count) of the L * P samples of each query of one (image, head).
struct Slice {
  int64_t image, head, first, count;
};

// The arrays of one block, structure of arrays, `capacity` entries each.
template <class C> struct Block {
  Scratch<C> reals;
  Scratch<int32_t> ints;
  // pixel coordinates and attention weight
  C *x, *y, *weight;
  // size of the sample's level
  C *width, *height;
  // bilinear factors of the left, right, upper, lower pixels; zero outside the image
  C *left, *right, *upper, *lower;
  // corner weights including the attention weight
  C* corner_weight[4];
  // <grad_output, corner row>, four per sample
  C* dots;
  C* probs;
  // element offsets of the corners from the first pixel of the image, and of the level
  int32_t* corner[4];
  int32_t* start;
  int32_t* is_inside;

  bool reserve(int64_t num_queries, int64_t samples, int64_t num_logits) {
    const int64_t capacity = num_queries * samples;
    if (!reals.reserve(17 * capacity + num_queries * num_logits) || !ints.reserve(6 * capacity)) {
      return false;
    }
    C** arrays[] = {&x,     &y,     &weight,           &width,            &height,
                    &left,  &right, &upper,            &lower,            &corner_weight[0],
                    &corner_weight[1], &corner_weight[2], &corner_weight[3]};
    C* next = reals.get();
    for (C** array : arrays) { *array = next; next += capacity; }
    dots = next;
    probs = next + 4 * capacity;
    int32_t** int_arrays[] = {&corner[0], &corner[1], &corner[2], &corner[3], &start, &is_inside};
    int32_t* next_int = ints.get();
    for (int32_t** array : int_arrays) { *array = next_int; next_int += capacity; }
    return true;
  }
};

template <class C>
void fill_levels(const MsdaProblem& p, const Slice& slice, int64_t num_queries,
                 int64_t first_pixel, Block<C>& block) {
  for (int64_t i = 0; i < num_queries * slice.count; ++i) {
    const int64_t level = (slice.first + i % slice.count) / p.num_points;
    block.height[i] = C(p.level_sizes_hw[2 * level]);
    block.width[i] = C(p.level_sizes_hw[2 * level + 1]);
    block.start[i] = int32_t(p.level_starts[level] - first_pixel);
  }
}

template <class C>
void read_points(const MsdaProblem& p, const Slice& slice, int64_t row, int64_t at, Block<C>& b) {
  const int64_t first = row * p.num_levels * p.num_points + slice.first;
  const C* __restrict points = static_cast<const C*>(p.samples) + 2 * first;
  const C* __restrict weights = static_cast<const C*>(p.weights) + first;
  C *__restrict x = b.x + at, *__restrict y = b.y + at, *__restrict weight = b.weight + at;
  const C *__restrict width = b.width + at, *__restrict height = b.height + at;
#pragma omp simd
  for (int64_t i = 0; i < slice.count; ++i) {
    x[i] = points[2 * i] * width[i] - C(0.5);
    y[i] = points[2 * i + 1] * height[i] - C(0.5);
    weight[i] = weights[i];
  }
}

// Pixel coordinate = reference * size + offset - 0.5, or, around a box,
// (centre + offset / P * extent / 2) * size - 0.5: two numbers per level and axis.
template <class C> struct Affine {
  C base_x, base_y, scale_x, scale_y;
};

template <class C>
inline Affine<C> affine_of(const MsdaProblem& p, int64_t query_row, int64_t level, C width,
                           C height) {
  const bool is_box = p.form == SampleForm::kOffsetsFromBoxes;
  const C* reference = static_cast<const C*>(p.reference) +
                       (query_row * p.num_levels + level) * (is_box ? 4 : 2);
  Affine<C> out{reference[0] * width - C(0.5), reference[1] * height - C(0.5), C(1), C(1)};
  if (is_box) {
    const C half_over_points = C(0.5) / C(p.num_points);
    out.scale_x = reference[2] * width * half_over_points;
    out.scale_y = reference[3] * height * half_over_points;
  }
  return out;
}

// Static points per level (0: any) let the compiler keep a level in one register.
template <int kPoints, class C>
inline void read_level(const Affine<C>& to, const C* __restrict offsets, int64_t num_points,
                       C* __restrict x, C* __restrict y) {
  const int64_t count = kPoints > 0 ? kPoints : num_points;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    x[i] = to.base_x + offsets[2 * i] * to.scale_x;
    y[i] = to.base_y + offsets[2 * i + 1] * to.scale_y;
  }
}

template <int kPoints, class C>
void read_offsets_of(const MsdaProblem& p, const Slice& slice, int64_t first_query_row,
                     int64_t num_queries, Block<C>& b) {
  const int64_t num_points = kPoints > 0 ? kPoints : p.num_points;
  const int64_t per_query = p.num_levels * num_points;
  const int64_t first_level = slice.first / num_points, num_levels = slice.count / num_points;
  int64_t from = 0;
  for (int64_t q = 0; q < num_queries; ++q) {
    const int64_t row = (first_query_row + q) * p.num_heads + slice.head;
    const C* offsets = static_cast<const C*>(p.samples) + 2 * (row * per_query + slice.first);
    for (int64_t level = 0; level < num_levels; ++level) {
      const Affine<C> to = affine_of<C>(p, first_query_row + q, first_level + level,
                                        b.width[from], b.height[from]);
      read_level<kPoints>(to, offsets + 2 * level * num_points, num_points, b.x + from, b.y + from);
      from += num_points;
    }
  }
}

template <class C>
void read_offsets(const MsdaProblem& p, const Slice& slice, int64_t first_query_row,
                  int64_t num_queries, Block<C>& b) {
  switch (p.num_points) {
    case 4: return read_offsets_of<4>(p, slice, first_query_row, num_queries, b);
    case 8: return read_offsets_of<8>(p, slice, first_query_row, num_queries, b);
    default: return read_offsets_of<0>(p, slice, first_query_row, num_queries, b);
  }
}

// Weights of the slice from all logits of the query: softmax runs over levels and points.
template <class C>
void read_logits(const MsdaProblem& p, const Slice& slice, int64_t first_row, int64_t num_queries,
                 Block<C>& b) {
  const int64_t per_query = p.num_levels * p.num_points;
  for (int64_t q = 0; q < num_queries; ++q) {
    const int64_t row = first_row + q * p.num_heads;
    copy_few(static_cast<const C*>(p.weights) + row * per_query, per_query,
             b.probs + q * per_query);
  }
  softmax_rows(num_queries, per_query, b.probs);
  for (int64_t q = 0; q < num_queries; ++q) {
    copy_few(b.probs + q * per_query + slice.first, slice.count, b.weight + q * slice.count);
  }
}

template <class C>
void read_samples(const MsdaProblem& p, const Slice& slice, int64_t first_row, int64_t num_queries,
                  Block<C>& b) {
  if (p.form != SampleForm::kPoints) {
    read_offsets(p, slice, first_row / p.num_heads, num_queries, b);
    read_logits(p, slice, first_row, num_queries, b);
    return;
  }
  for (int64_t q = 0; q < num_queries; ++q) {
    read_points(p, slice, first_row + q * p.num_heads, q * slice.count, b);
  }
}

// Fills corners and weights of n samples. A corner outside the image is clamped to the image
// and has weight zero. Returns whether every sample touches the image.
template <class C> bool locate(int64_t n, int32_t pixel_stride, Block<C>& b) {
  const C *__restrict px = b.x, *__restrict py = b.y, *__restrict weight = b.weight;
  const C *__restrict width = b.width, *__restrict height = b.height;
  const int32_t* __restrict start = b.start;
  C *__restrict left = b.left, *__restrict right = b.right;
  C *__restrict upper = b.upper, *__restrict lower = b.lower;
  C *__restrict w0 = b.corner_weight[0], *__restrict w1 = b.corner_weight[1];
  C *__restrict w2 = b.corner_weight[2], *__restrict w3 = b.corner_weight[3];
  int32_t *__restrict o0 = b.corner[0], *__restrict o1 = b.corner[1];
  int32_t *__restrict o2 = b.corner[2], *__restrict o3 = b.corner[3];
  int32_t* __restrict is_inside = b.is_inside;
  int32_t all_inside = 1;
#pragma omp simd reduction(& : all_inside)
  for (int64_t i = 0; i < n; ++i) {
    const int32_t inside =
        (px[i] > C(-1)) & (px[i] < width[i]) & (py[i] > C(-1)) & (py[i] < height[i]);
    // a coordinate that is not a number must not reach the conversion to an integer
    const C x = inside ? px[i] : C(0), y = inside ? py[i] : C(0);
    const C x_floor = floor_of(x), y_floor = floor_of(y);
    const int32_t x0 = int32_t(x_floor), y0 = int32_t(y_floor);
    const int32_t w = int32_t(width[i]), h = int32_t(height[i]);
    const C attention = inside ? weight[i] : C(0);
    left[i] = x0 >= 0 ? C(1) - (x - x_floor) : C(0);
    right[i] = x0 + 1 < w ? x - x_floor : C(0);
    upper[i] = y0 >= 0 ? C(1) - (y - y_floor) : C(0);
    lower[i] = y0 + 1 < h ? y - y_floor : C(0);
    const int32_t x_left = x0 < 0 ? 0 : x0, x_right = x0 + 1 < w ? x0 + 1 : w - 1;
    const int32_t y_upper = y0 < 0 ? 0 : y0, y_lower = y0 + 1 < h ? y0 + 1 : h - 1;
    o0[i] = (start[i] + y_upper * w + x_left) * pixel_stride;
    o1[i] = (start[i] + y_upper * w + x_right) * pixel_stride;
    o2[i] = (start[i] + y_lower * w + x_left) * pixel_stride;
    o3[i] = (start[i] + y_lower * w + x_right) * pixel_stride;
    w0[i] = attention * upper[i] * left[i];
    w1[i] = attention * upper[i] * right[i];
    w2[i] = attention * lower[i] * left[i];
    w3[i] = attention * lower[i] * right[i];
    is_inside[i] = inside;
    all_inside &= inside;
  }
  return all_inside != 0;
}

// Moves the samples that touch the image to the front; returns their number. Forward only: a
// sample outside must not read even a clamped row, which may hold NaN.
template <class C> int64_t drop_outside(int64_t begin, int64_t count, Block<C>& b) {
  int64_t kept = 0;
  for (int64_t i = begin; i < begin + count; ++i) {
    if (!b.is_inside[i]) continue;
    for (int c = 0; c < 4; ++c) {
      b.corner[c][begin + kept] = b.corner[c][i];
      b.corner_weight[c][begin + kept] = b.corner_weight[c][i];
    }
    ++kept;
  }
  return kept;
}

// NV vectors of the output row: sum over samples and corners of weight * row.
template <int NV, class C, class T>
inline void gather(const T* rows, const Block<C>& b, int64_t begin, int64_t count, C* out) {
  // one accumulator per corner hides the latency of the multiply-add, as registers allow
  constexpr int kSets = kVectorBytes == 64 || NV < 4 ? 4 : 2;
  Vec<C> sums[kSets][NV] = {};
  for (int64_t i = begin; i < begin + count; ++i) {
    for (int c = 0; c < 4; ++c) {
      const T* row = rows + b.corner[c][i];
      const Vec<C> weight = broadcast<C>(b.corner_weight[c][i]);
      for (int v = 0; v < NV; ++v) {
        sums[c % kSets][v] = fma(weight, load(row + v * kLanes<C>), sums[c % kSets][v]);
      }
    }
  }
  for (int v = 0; v < NV; ++v) {
    Vec<C> total = sums[0][v];
    for (int set = 1; set < kSets; ++set) total += sums[set][v];
    store(out + v * kLanes<C>, total);
  }
}

template <class C, class T>
inline void gather_row(const T* rows, const Block<C>& b, int64_t begin, int64_t count,
                       int64_t row_length, C* out) {
  int64_t at = 0;
  for (; at + 4 * kLanes<C> <= row_length; at += 4 * kLanes<C>) {
    gather<4>(rows + at, b, begin, count, out + at);
  }
  if (at + 2 * kLanes<C> <= row_length) {
    gather<2>(rows + at, b, begin, count, out + at);
    at += 2 * kLanes<C>;
  }
  if (at < row_length) gather<1>(rows + at, b, begin, count, out + at);
}

// Rows of one head, one after another and padded with zeros to whole vectors. Heads that lie
// 1 KiB apart would share an eighth of the cache sets. Backward converts to C on the way.
template <class C, class T, class R>
void pack_rows(const MsdaProblem& p, int64_t image, int64_t head, int64_t first, int64_t count,
               R* rows) {
  const int64_t stride = p.num_heads * p.head_dim, row_length = padded<C>(p.head_dim);
  const T* from = static_cast<const T*>(p.value) + (image * p.num_pixels + first) * stride +
                  head * p.head_dim;
  for (int64_t pixel = 0; pixel < count; ++pixel) {
    if constexpr (sizeof(R) == sizeof(T)) memcpy(rows, from, p.head_dim * sizeof(T));
    else load_row(from, p.head_dim, rows);
    memset(rows + p.head_dim, 0, (row_length - p.head_dim) * sizeof(R));
    from += stride;
    rows += row_length;
  }
}

template <class C> inline int64_t queries_per_block(int64_t samples_per_query, int64_t queries) {
  const int64_t wanted = kBlockSamples / samples_per_query;
  return min_of(wanted < 1 ? 1 : wanted, queries);
}

template <class C, class T>
void forward_block(const MsdaProblem& p, const Slice& slice, const T* rows, int64_t pixel_stride,
                   int64_t query, int64_t num_queries, Block<C>& block, C* row_buffer) {
  const int64_t row_length = padded<C>(p.head_dim);
  const int64_t samples = slice.count;
  const int64_t first_row = (slice.image * p.num_queries + query) * p.num_heads + slice.head;
  read_samples(p, slice, first_row, num_queries, block);
  const bool all_inside = locate(num_queries * samples, int32_t(pixel_stride), block);
  for (int64_t q = 0; q < num_queries; ++q) {
    const int64_t row = first_row + q * p.num_heads;
    const int64_t kept = all_inside ? samples : drop_outside(q * samples, samples, block);
    gather_row(rows, block, q * samples, kept, row_length, row_buffer);
    store_row(row_buffer, p.head_dim, static_cast<T*>(p.output) + row * p.head_dim);
  }
}

template <class C, class T> bool forward_range(const MsdaProblem& p, int64_t begin, int64_t end) {
  const int64_t samples = p.num_levels * p.num_points, row_length = padded<C>(p.head_dim);
  // packing reads and writes S rows; it pays when more rows than that are gathered
  const bool is_packed = row_length != p.head_dim ||
                         p.num_queries * samples * 4 > 2 * p.num_pixels * p.num_chunks;
  const int64_t pixel_stride = is_packed ? row_length : p.num_heads * p.head_dim;
  const int64_t chunk = (p.num_queries + p.num_chunks - 1) / p.num_chunks;
  const int64_t per_block = queries_per_block<C>(samples, p.num_queries);
  Block<C> block;
  Scratch<T> packed;
  Scratch<C> row_buffer;
  if (!block.reserve(per_block, samples, samples) || !row_buffer.reserve(row_length) ||
      (is_packed && !packed.reserve(p.num_pixels * row_length))) {
    return false;
  }
  fill_levels(p, Slice{0, 0, 0, samples}, per_block, 0, block);
  int64_t packed_pair = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t pair = item / p.num_chunks;
    const Slice slice{pair / p.num_heads, pair % p.num_heads, 0, samples};
    if (is_packed && packed_pair != pair) {
      pack_rows<C, T>(p, slice.image, slice.head, 0, p.num_pixels, packed.get());
      packed_pair = pair;
    }
    const T* rows = is_packed ? packed.get()
                              : static_cast<const T*>(p.value) +
                                    slice.image * p.num_pixels * pixel_stride +
                                    slice.head * p.head_dim;
    const int64_t first = item % p.num_chunks * chunk, last = min_of(first + chunk, p.num_queries);
    for (int64_t query = first; query < last; query += per_block) {
      forward_block<C, T>(p, slice, rows, pixel_stride, query, min_of(per_block, last - query),
                          block, row_buffer.get());
    }
  }
  return true;
}

// One sample: the four dot products with grad_output, and its four rows of grad_value.
template <int NV, class C>
inline void scatter_sample(const C* rows, C* grad_rows, const Vec<C>* grad, const Block<C>& b,
                           int64_t i, Vec<C>* dots) {
  for (int c = 0; c < 4; ++c) {
    const C* row = rows + b.corner[c][i];
    C* grad_row = grad_rows + b.corner[c][i];
    const Vec<C> weight = broadcast<C>(b.corner_weight[c][i]);
    for (int v = 0; v < NV; ++v) {
      dots[c] = fma(grad[v], load(row + v * kLanes<C>), dots[c]);
      store(grad_row + v * kLanes<C>, fma(weight, grad[v], load(grad_row + v * kLanes<C>)));
    }
  }
}

template <int NV, class C>
void scatter_query(const C* rows, C* grad_rows, const C* grad_row, int64_t begin, int64_t count,
                   bool is_first, Block<C>& b) {
  Vec<C> grad[NV];
  for (int v = 0; v < NV; ++v) grad[v] = load(grad_row + v * kLanes<C>);
  for (int64_t i = begin; i < begin + count; ++i) {
    if (!b.is_inside[i]) continue;
    Vec<C> dots[4] = {};
    scatter_sample<NV>(rows, grad_rows, grad, b, i, dots);
    C sums[4];
    sum_lanes(dots[0], dots[1], dots[2], dots[3], sums);
    for (int c = 0; c < 4; ++c) {
      b.dots[4 * i + c] = is_first ? sums[c] : b.dots[4 * i + c] + sums[c];
    }
  }
}

template <class C>
void scatter_row(const C* rows, C* grad_rows, const C* grad_row, int64_t begin, int64_t count,
                 int64_t row_length, Block<C>& b) {
  int64_t at = 0;
  for (; at + 4 * kLanes<C> <= row_length; at += 4 * kLanes<C>) {
    scatter_query<4>(rows + at, grad_rows + at, grad_row + at, begin, count, at == 0, b);
  }
  if (at + 2 * kLanes<C> <= row_length) {
    scatter_query<2>(rows + at, grad_rows + at, grad_row + at, begin, count, at == 0, b);
    at += 2 * kLanes<C>;
  }
  if (at < row_length) {
    scatter_query<1>(rows + at, grad_rows + at, grad_row + at, begin, count, at == 0, b);
  }
}

// From the dot products to the gradients of the weight and of the pixel coordinates, which go
// to b.weight, b.x and b.y.
template <class C> void sample_gradients(int64_t n, Block<C>& b) {
  C *__restrict px = b.x, *__restrict py = b.y, *__restrict weight = b.weight;
  const C *__restrict left = b.left, *__restrict right = b.right;
  const C *__restrict upper = b.upper, *__restrict lower = b.lower;
  const C *__restrict width = b.width, *__restrict height = b.height, *__restrict dots = b.dots;
  const int32_t* __restrict is_inside = b.is_inside;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const bool inside = is_inside[i] != 0;
    const C d0 = inside ? dots[4 * i] : C(0), d1 = inside ? dots[4 * i + 1] : C(0);
    const C d2 = inside ? dots[4 * i + 2] : C(0), d3 = inside ? dots[4 * i + 3] : C(0);
    // a factor of a pixel inside the image has slope -1 (left, upper) or +1 (right, lower)
    const C has_left = px[i] >= C(0) ? C(1) : C(0), has_upper = py[i] >= C(0) ? C(1) : C(0);
    const C has_right = px[i] < width[i] - C(1) ? C(1) : C(0);
    const C has_lower = py[i] < height[i] - C(1) ? C(1) : C(0);
    const C attention = inside ? weight[i] : C(0);
    px[i] = attention * (upper[i] * (has_right * d1 - has_left * d0) +
                         lower[i] * (has_right * d3 - has_left * d2));
    py[i] = attention * (left[i] * (has_lower * d2 - has_upper * d0) +
                         right[i] * (has_lower * d3 - has_upper * d1));
    weight[i] = upper[i] * (left[i] * d0 + right[i] * d1) +
                lower[i] * (left[i] * d2 + right[i] * d3);
  }
}

// For points the gradient is per unit of the image, for offsets it stays per pixel and
// `finish_range` turns it into the gradients of offsets and reference.
template <class C>
void write_gradients(const MsdaProblem& p, const Slice& slice, int64_t row, int64_t at,
                     const Block<C>& b) {
  const int64_t first = row * p.num_levels * p.num_points + slice.first;
  C* __restrict grad_samples = static_cast<C*>(p.grad_samples) + 2 * first;
  C* __restrict grad_weights = static_cast<C*>(p.grad_weights) + first;
  const bool is_pixels = p.form != SampleForm::kPoints;
  for (int64_t i = 0; i < slice.count; ++i) {
    grad_samples[2 * i] = b.x[at + i] * (is_pixels ? C(1) : b.width[at + i]);
    grad_samples[2 * i + 1] = b.y[at + i] * (is_pixels ? C(1) : b.height[at + i]);
    grad_weights[i] = b.weight[at + i];
  }
}

template <class C, class T>
void backward_block(const MsdaProblem& p, const Slice& slice, const C* rows, C* grad_rows,
                    int64_t query, int64_t num_queries, Block<C>& block, C* row_buffer) {
  const int64_t row_length = padded<C>(p.head_dim), samples = slice.count;
  const int64_t first_row = (slice.image * p.num_queries + query) * p.num_heads + slice.head;
  read_samples(p, slice, first_row, num_queries, block);
  locate(num_queries * samples, int32_t(row_length), block);
  for (int64_t q = 0; q < num_queries; ++q) {
    const int64_t row = first_row + q * p.num_heads;
    load_row(static_cast<const T*>(p.grad_output) + row * p.head_dim, p.head_dim, row_buffer);
    scatter_row(rows, grad_rows, row_buffer, q * samples, samples, row_length, block);
  }
  sample_gradients(num_queries * samples, block);
  for (int64_t q = 0; q < num_queries; ++q) {
    write_gradients(p, slice, first_row + q * p.num_heads, q * samples, block);
  }
}

// One item owns grad_value of one (image, head, level): no atomics, and the same order of
// additions whatever the number of threads.
template <class C, class T> bool backward_range(const MsdaProblem& p, int64_t begin, int64_t end) {
  const int64_t row_length = padded<C>(p.head_dim);
  const int64_t per_block = queries_per_block<C>(p.num_points, p.num_queries);
  Block<C> block;
  Scratch<C> packed, grad_rows, row_buffer;
  const int64_t per_query = p.num_levels * p.num_points;
  if (!block.reserve(per_block, p.num_points, per_query) || !row_buffer.reserve(row_length)) {
    return false;
  }
  memset(row_buffer.get(), 0, row_length * sizeof(C));
  for (int64_t item = begin; item < end; ++item) {
    const int64_t level = item % p.num_levels, pair = item / p.num_levels;
    const Slice slice{pair / p.num_heads, pair % p.num_heads, level * p.num_points, p.num_points};
    const int64_t first = p.level_starts[level];
    const int64_t count = p.level_sizes_hw[2 * level] * p.level_sizes_hw[2 * level + 1];
    if (!packed.reserve(count * row_length) || !grad_rows.reserve(count * row_length)) return false;
    fill_levels(p, slice, per_block, first, block);
    pack_rows<C, T>(p, slice.image, slice.head, first, count, packed.get());
    memset(grad_rows.get(), 0, count * row_length * sizeof(C));
    for (int64_t query = 0; query < p.num_queries; query += per_block) {
      backward_block<C, T>(p, slice, packed.get(), grad_rows.get(), query,
                           min_of(per_block, p.num_queries - query), block, row_buffer.get());
    }
    T* grad_value = static_cast<T*>(p.grad_value) +
                    ((slice.image * p.num_pixels + first) * p.num_heads + slice.head) * p.head_dim;
    for (int64_t pixel = 0; pixel < count; ++pixel) {
      store_row(grad_rows.get() + pixel * row_length, p.head_dim,
                grad_value + pixel * p.num_heads * p.head_dim);
    }
  }
  return true;
}

// grad_logits = probs * (grad_weights - <probs, grad_weights>), in place.
template <class C> void softmax_backward(const C* logits, int64_t count, C* probs, C* grad) {
  memcpy(probs, logits, count * sizeof(C));
  softmax_rows(1, count, probs);
  C mean = 0;
  for (int64_t i = 0; i < count; ++i) mean += probs[i] * grad[i];
  for (int64_t i = 0; i < count; ++i) grad[i] = probs[i] * (grad[i] - mean);
}

// Per (query, head, level): pixel gradients to offset gradients in place, and their share of
// the gradient of the reference.
template <class C>
void finish_level(const MsdaProblem& p, const Affine<C>& to, C width, C height, const C* offsets,
                  C* grad_samples, C* grad_reference) {
  const C half_over_points = C(0.5) / C(p.num_points);
  for (int64_t i = 0; i < p.num_points; ++i) {
    const C grad_x = grad_samples[2 * i], grad_y = grad_samples[2 * i + 1];
    grad_reference[0] += grad_x * width;
    grad_reference[1] += grad_y * height;
    if (p.form != SampleForm::kOffsetsFromBoxes) continue;
    grad_reference[2] += grad_x * width * offsets[2 * i] * half_over_points;
    grad_reference[3] += grad_y * height * offsets[2 * i + 1] * half_over_points;
    grad_samples[2 * i] = grad_x * to.scale_x;
    grad_samples[2 * i + 1] = grad_y * to.scale_y;
  }
}

template <class C> bool finish_range(const MsdaProblem& p, int64_t begin, int64_t end) {
  const int64_t per_query = p.num_levels * p.num_points;
  const int64_t coordinates = p.form == SampleForm::kOffsetsFromBoxes ? 4 : 2;
  Scratch<C> probs;
  if (!probs.reserve(per_query)) return false;
  for (int64_t query_row = begin; query_row < end; ++query_row) {
    C* grad_reference =
        static_cast<C*>(p.grad_reference) + query_row * p.num_levels * coordinates;
    memset(grad_reference, 0, p.num_levels * coordinates * sizeof(C));
    for (int64_t head = 0; head < p.num_heads; ++head) {
      const int64_t first = (query_row * p.num_heads + head) * per_query;
      softmax_backward(static_cast<const C*>(p.weights) + first, per_query, probs.get(),
                       static_cast<C*>(p.grad_weights) + first);
      for (int64_t level = 0; level < p.num_levels; ++level) {
        const int64_t at = 2 * (first + level * p.num_points);
        const C height = C(p.level_sizes_hw[2 * level]), width = C(p.level_sizes_hw[2 * level + 1]);
        finish_level(p, affine_of<C>(p, query_row, level, width, height), width, height,
                     static_cast<const C*>(p.samples) + at, static_cast<C*>(p.grad_samples) + at,
                     grad_reference + level * coordinates);
      }
    }
  }
  return true;
}

}  // namespace

#define XDEC_DEFINE_MSDA_KERNELS(function, set_name)                                         \
  const MsdaKernels& function() {                                                            \
    static const MsdaKernels kernels = {                                                     \
        set_name,                                                                            \
        {forward_range<float, float>, forward_range<double, double>,                         \
         forward_range<float, BFloat16>, forward_range<float, Half>},                        \
        {backward_range<float, float>, backward_range<double, double>,                       \
         backward_range<float, BFloat16>, backward_range<float, Half>},                      \
        {finish_range<float>, finish_range<double>, finish_range<float>, finish_range<float>}}; \
    return kernels;                                                                          \
  }
