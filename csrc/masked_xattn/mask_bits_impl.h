// Signs of a GEMM, packed: one panel of 64 keys against all rows.
// Included once per instruction set, inside its namespace; hence no include guard.

// [C, 64] of the panel, zeros past the last key
XATTN_INLINE const float* pack_panel(const MaskBitsArgs& args, int64_t b, int64_t first_key) {
  thread_local std::vector<float> buffer;
  buffer.resize(args.channels * kTileKeys + kListMultiple);
  const int64_t count = std::min(kTileKeys, args.keys - first_key);
  const float* source = args.features + b * args.features_stride_b + first_key;
  float* panel = aligned(buffer.data());
  for (int64_t c = 0; c < args.channels; ++c) {
    float* row = panel + c * kTileKeys;
    std::memcpy(row, source + c * args.features_stride_c, count * sizeof(float));
    std::fill(row + count, row + kTileKeys, 0.0f);
  }
  return panel;
}

// signs of 4 rows against kStrip vectors of keys, put into words[row] from bit `shift` on
XATTN_INLINE void strip_signs(const float* const* embed, const float* panel, int64_t channels,
                              uint64_t* words, int shift) {
  Vec acc[kTileRows][kStrip] = {};
  for (int64_t c = 0; c < channels; ++c) {
    Vec keys[kStrip];
    for (int j = 0; j < kStrip; ++j) keys[j] = load(panel + c * kTileKeys + j * kLanes);
    for (int r = 0; r < kTileRows; ++r) {
      const Vec weight = splat(embed[r][c]);
      for (int j = 0; j < kStrip; ++j) acc[r][j] = fma(weight, keys[j], acc[r][j]);
    }
  }
  for (int r = 0; r < kTileRows; ++r) {
    for (int j = 0; j < kStrip; ++j) {
      const uint64_t is_negative = lane_mask(acc[r][j] < Vec{});
      words[r] |= (~is_negative & uint64_t{kAllLanes}) << (shift + j * kLanes);
    }
  }
}

static void mask_bits_panel(const MaskBitsArgs& args, int64_t b, int64_t panel_index) {
  const int64_t first_key = panel_index * kTileKeys;
  const int64_t count = std::min(kTileKeys, args.keys - first_key);
  const uint64_t valid = count == kTileKeys ? ~0ull : (1ull << count) - 1;
  const int64_t all_rows = args.rows + args.unmasked_rows;
  const int64_t num_panels = (args.keys + kTileKeys - 1) / kTileKeys;
  const int64_t row_tiles = (all_rows + kTileRows - 1) / kTileRows;
  const float* embed = args.embed + b * args.embed_stride_b;
  const float* panel = pack_panel(args, b, first_key);
  for (int64_t tile = 0; tile < row_tiles; ++tile) {
    const int64_t first_row = tile * kTileRows;
    uint64_t words[kTileRows] = {};
    if (first_row < args.rows) {
      const float* rows[kTileRows];
      for (int64_t r = 0; r < kTileRows; ++r)
        rows[r] = embed + std::min(first_row + r, args.rows - 1) * args.embed_stride_r;
      for (int strip = 0; strip < kTileVecs; strip += kStrip)
        strip_signs(rows, panel + strip * kLanes, args.channels, words, strip * kLanes);
    }
    uint64_t any = 0;
    const int64_t num_rows = std::min(kTileRows, all_rows - first_row);
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t row = first_row + r;
      const uint64_t word = (row < args.rows ? words[r] : ~0ull) & valid;
      int32_t* target = args.bits + (b * all_rows + row) * args.words + 2 * panel_index;
      target[0] = static_cast<int32_t>(static_cast<uint32_t>(word));
      if (count > kWordBits) target[1] = static_cast<int32_t>(static_cast<uint32_t>(word >> 32));
      any |= word;
    }
    args.tile_any[(b * row_tiles + tile) * num_panels + panel_index] = any != 0;
  }
}
