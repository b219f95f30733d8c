// Separable resizing of feature maps, one plane per call: rows first, whole vectors wide.
// Included once per instruction set, inside its namespace; hence no include guard.

// sum[0..width) = weighted sum of `count` rows
XATTN_INLINE void weighted_rows(const float* rows, int64_t width, const float* weights,
                                int64_t count, float* sum) {
  int64_t x = 0;
  for (; x + kLanes <= width; x += kLanes) {
    Vec acc = {};
    for (int64_t t = 0; t < count; ++t)
      acc = fma(splat(weights[t]), load(rows + t * width + x), acc);
    store(sum + x, acc);
  }
  for (; x < width; ++x) {
    float acc = 0.0f;
    for (int64_t t = 0; t < count; ++t) acc += weights[t] * rows[t * width + x];
    sum[x] = acc;
  }
}

static void resize_plane(const ResizeArgs& args, int64_t plane) {
  thread_local std::vector<float> buffer;
  buffer.resize(args.width_in);
  const float* source = args.source + plane * args.height_in * args.width_in;
  float* target = args.target + plane * args.height_out * args.width_out;
  const Taps &vertical = *args.vertical, &horizontal = *args.horizontal;
  for (int64_t y = 0; y < args.height_out; ++y) {
    weighted_rows(source + vertical.starts[y] * args.width_in, args.width_in,
                  &vertical.weights[y * vertical.count], vertical.count, buffer.data());
    for (int64_t x = 0; x < args.width_out; ++x) {
      const float* weights = &horizontal.weights[x * horizontal.count];
      const float* row = &buffer[horizontal.starts[x]];
      float sum = 0.0f;
      for (int64_t t = 0; t < horizontal.count; ++t) sum += weights[t] * row[t];
      target[y * args.width_out + x] = sum;
    }
  }
}
