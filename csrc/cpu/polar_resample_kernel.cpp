// Forward of polar_resample. The output is walked in tiles of 16 columns: a wedge of the image, read from the
// horizon to the centre, so that what one row of the tile brings into the cache the next ones use.
// SPDX-License-Identifier: Apache-2.0
#include "common/half.h"
#include "common/polar_geometry.h"
#include "cpu/polar_tile.h"
#include "cpu/threads.h"
#include "geoloc_fast/polar_resample.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {
namespace {

// How a call is cut: an item is one tile of 16 columns and at most `block` rows, of `group` images.
struct Plan {
  const PolarResampleParams& p;
  Angles steps;
  int64_t group, block, tiles, blocks;
};

struct Item {
  int64_t image, images, row, rows, column, columns;
};

Item item_at(const Plan& plan, int64_t index) {
  const PolarResampleParams& p = plan.p;
  Item item;
  item.column = index % plan.tiles * kTileColumns;
  item.row = index / plan.tiles % plan.blocks * plan.block;
  item.image = index / (plan.tiles * plan.blocks) * plan.group;
  item.columns = p.out_cols - item.column < kTileColumns ? p.out_cols - item.column : kTileColumns;
  item.rows = p.out_rows - item.row < plan.block ? p.out_rows - item.row : plan.block;
  item.images = p.batch - item.image < plan.group ? p.batch - item.image : plan.group;
  return item;
}

template <typename Function>
void for_items(const PolarResampleParams& p, int64_t group, int64_t block, int threads, Function& function) {
  const Plan plan{p,
                  column_steps(p.out_cols),
                  group,
                  block,
                  (p.out_cols + kTileColumns - 1) / kTileColumns,
                  (p.out_rows + block - 1) / block};
  auto task = [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const Item item = item_at(plan, index);
      const PolarView view = polar_view(p, item.image);
      function(item, view, tile_angles(plan.steps, p.column0_deg + view.heading_deg, item.column, p.out_cols));
    }
  };
  // Pieces of some 16k pixels: enough to hide the cost of handing one out.
  const int64_t pixels = group * block * kTileColumns;
  parallel_for((p.batch + group - 1) / group * plan.blocks * plan.tiles, pixels < 16384 ? 16384 / pixels : 1, threads,
               task);
}

template <typename Out>
void store_one(char* out, int64_t at, float value) {
  reinterpret_cast<Out*>(out)[at] = from_float<Out>(value);
}

template <typename In>
void resample_generic(const PolarResampleParams& p, int threads) {
  const auto store_as = p.out_dtype == DType::kFloat32    ? store_one<float>
                        : p.out_dtype == DType::kBFloat16 ? store_one<BFloat16>
                        : p.out_dtype == DType::kFloat16  ? store_one<Float16>
                                                          : store_one<uint8_t>;
  auto tile = [&](const Item& item, const PolarView& view, const Angles& angles) {
    const In* image = static_cast<const In*>(p.images) + item.image * p.stride_batch;
    for (int64_t i = item.row; i < item.row + item.rows; ++i) {
      const double radius = view.max_radius * polar_radius_share<double>(i, p.out_rows, p.outer_radius);
      const int64_t to = (item.image * p.channels * p.out_rows + i) * p.out_cols + item.column;
      for (int64_t k = 0; k < item.columns; ++k) {
        const BilinearTaps taps =
            bilinear_taps(view.center_row - radius * angles.cosine[k], view.center_col + radius * angles.sine[k],
                          p.in_rows, p.in_cols, p.stride_row, p.stride_col, p.replicate_border);
        for (int64_t c = 0; c < p.channels; ++c) {
          const In* channel = image + c * p.stride_channel;
          float value = 0.0f;
          for (int tap = 0; tap < 4; ++tap)
            if (taps.weight[tap] != 0.0f) value += taps.weight[tap] * to_float(channel[taps.offset[tap]]);
          if (p.normalize) value = value * p.scale[c] + p.offset[c];
          store_as(static_cast<char*>(p.out), to + c * p.out_rows * p.out_cols + k, value);
        }
      }
    }
  };
  for_items(p, 1, 128, threads, tile);
}

#if defined(GEOLOC_FAST_POLAR_LANES)

template <typename Out>
__attribute__((noinline)) void store_first(Out* to, F32 value, int64_t columns) {
  Out all[kPixels];
  store(all, value);
  for (int64_t k = 0; k < columns; ++k) to[k] = all[k];
}

// kPixels values of each channel, to planes `plane` elements apart; the first `columns` of them at a tile's end.
template <typename Out, int kChannels>
GEOLOC_FAST_INLINE void store_pixels(char* to, int64_t at, int64_t plane, int64_t columns,
                                     const F32 (&value)[kChannels]) {
  Out* out = reinterpret_cast<Out*>(to) + at;
  if (columns >= kPixels) {
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) store(out + c * plane, value[c]);
    return;
  }
  for (int c = 0; c < kChannels; ++c) store_first(out + c * plane, value[c], columns);
}

GEOLOC_FAST_INLINE const __m128i* bytes16(const void* from) { return static_cast<const __m128i*>(from); }

// A path turns kPixels positions of one row of a tile into pixels. It names what it reads (In), its table (Row,
// kRows of them fit the L1 cache beside the image), and whether channels lie beside each other (one surface an
// image) or apart (a surface a channel).

// uint8, channels beside each other. Two loads of 8 bytes a pixel bring both neighbours of the upper and of the
// lower row. For 3 channels 2 of the 8 bytes are foreign: the upper load looks 2 bytes too far right, the lower one
// 2 bytes too far left, so that neither leaves the image, whose lower row is never its first.
template <int kChannelCount>
struct BytesAcross {
  using In = uint8_t;
  using Row = ByteRow;
  static constexpr int kRows = 128, kChannels = kChannelCount;
  static constexpr bool kApart = false;
  static constexpr float kUnit = 1.0f / kByteOne;
  static constexpr int kForeign = 8 - 2 * kChannels;

  static void fill(Row* rows, const Item& item, const PolarResampleParams& p, const PolarView& view,
                   const Angles& angles) {
    fill_rows<true>(rows, item.row, item.rows, p, view, angles, p.stride_row, p.stride_col);
  }

#if defined(__SSSE3__)
  // (left, right) of each channel as 16-bit pairs, from the upper and from the lower half of a lane.
  GEOLOC_FAST_INLINE I32 upper_pairs(I32 taps) {
    return pick_bytes(taps, kChannels == 4 ? _mm_setr_epi8(0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1)
                                           : _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  }
  GEOLOC_FAST_INLINE I32 lower_pairs(I32 taps) {
    return pick_bytes(taps, kChannels == 4
                                ? _mm_setr_epi8(8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1)
                                : _mm_setr_epi8(10, -1, 13, -1, 11, -1, 14, -1, 12, -1, 15, -1, -1, -1, -1, -1));
  }
#else
  GEOLOC_FAST_INLINE I32 pairs(__m128i words) {
    return (I32)_mm_unpacklo_epi16(words, _mm_srli_si128(words, 2 * kChannels));
  }
  GEOLOC_FAST_INLINE I32 upper_pairs(I32 taps) { return pairs(_mm_unpacklo_epi8((__m128i)taps, _mm_setzero_si128())); }
  GEOLOC_FAST_INLINE I32 lower_pairs(I32 taps) {
    return pairs(_mm_srli_si128(_mm_unpackhi_epi8((__m128i)taps, _mm_setzero_si128()), 2 * kForeign));
  }
#endif

  template <int k>
  GEOLOC_FAST_INLINE I32 pixel(const uint8_t* upper, const uint8_t* lower, const int32_t* offset, I32 first,
                               I32 second) {
    const I32 taps = lanes([&](int lane) __attribute__((always_inline)) {
      const int64_t at = offset[4 * lane + k];
      return _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(_mm_loadl_epi64(bytes16(upper + at))),
                                           reinterpret_cast<const double*>(lower + at)));
    });
    return multiply_add(upper_pairs(taps), words<k * 0x55>(first)) +
           multiply_add(lower_pairs(taps), words<k * 0x55>(second));
  }

  GEOLOC_FAST_INLINE void pixels(const uint8_t* image, const Row& row, int at, int64_t stride_row,
                                 F32 (&value)[kChannels]) {
    const int32_t* offset = row.offset + at;
    const I32 first = load_i32(row.first + at), second = load_i32(row.second + at);
    const uint8_t* lower = image + stride_row - kForeign;
    const I32 by_pixel[4] = {
        pixel<0>(image, lower, offset, first, second), pixel<1>(image, lower, offset, first, second),
        pixel<2>(image, lower, offset, first, second), pixel<3>(image, lower, offset, first, second)};
    I32 channel[4];
    transpose4<kChannels>(by_pixel, channel);
    for (int c = 0; c < kChannels; ++c) value[c] = to_f32(channel[c]);
  }
};

// uint8, columns beside each other: the four taps of a pixel make one word.
struct BytesPlanar {
  using In = uint8_t;
  using Row = ByteRow;
  static constexpr int kRows = 128, kChannels = 1;
  static constexpr bool kApart = true;
  static constexpr float kUnit = 1.0f / kByteOne;

  static void fill(Row* rows, const Item& item, const PolarResampleParams& p, const PolarView& view,
                   const Angles& angles) {
    fill_rows<false>(rows, item.row, item.rows, p, view, angles, p.stride_row, p.stride_col);
  }

  GEOLOC_FAST_INLINE uint32_t taps_of(const uint8_t* upper, int64_t stride_row) {
    uint16_t above, below;
    __builtin_memcpy(&above, upper, 2);
    __builtin_memcpy(&below, upper + stride_row, 2);
    return above | static_cast<uint32_t>(below) << 16;
  }

  GEOLOC_FAST_INLINE void pixels(const uint8_t* image, const Row& row, int at, int64_t stride_row, F32 (&value)[1]) {
    const int32_t* offset = row.offset + at;
    const I32 taps = lanes([&](int lane) __attribute__((always_inline)) {
      const int32_t* four = offset + 4 * lane;
      const uint64_t low =
          taps_of(image + four[0], stride_row) | static_cast<uint64_t>(taps_of(image + four[1], stride_row)) << 32;
      const uint64_t high =
          taps_of(image + four[2], stride_row) | static_cast<uint64_t>(taps_of(image + four[3], stride_row)) << 32;
      return _mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low));
    });
    const I32 left = taps & 0x00ff00ff, right = (I32)((U32)taps >> 8) & 0x00ff00ff;
    value[0] = to_f32(multiply_add(left, load_i32(row.first + at)) + multiply_add(right, load_i32(row.second + at)));
  }
};

// Without the pixels whose weight is 0: 0 * NaN would spread a neighbour's NaN.
GEOLOC_FAST_INLINE F32 weighted(F32 value, F32 weight) { return (F32)((I32)value & (weight != 0.0f)) * weight; }

template <int kOrder>
GEOLOC_FAST_INLINE F32 words_f32(F32 a) {
  return (F32)words<kOrder>((I32)a);
}

template <typename Input>
struct FloatPath {
  using In = Input;
  using Row = FloatRow;
  static constexpr int kRows = 64;
  static constexpr float kUnit = 1.0f;
  static void fill(Row* rows, const Item& item, const PolarResampleParams& p, const PolarView& view,
                   const Angles& angles) {
    fill_rows(rows, item.row, item.rows, p, view, angles, p.stride_row, p.stride_col);
  }
};

// Floats, channels beside each other: a load of four elements a tap. For 3 channels one of the four is foreign:
// the left tap's load looks one element too far right and the right tap's one too far left, so that neither
// leaves the row.
template <typename In, int kChannelCount>
struct FloatsAcross : FloatPath<In> {
  static constexpr int kChannels = kChannelCount;
  static constexpr bool kApart = false;

  template <int k>
  GEOLOC_FAST_INLINE F32 taps(const In* from, const int32_t* offset) {
    if constexpr (sizeof(In) == 4)
      return (F32)lanes([&](int lane) __attribute__((always_inline)) {
        return _mm_loadu_si128(bytes16(from + offset[4 * lane + k]));
      });
    else
      return widen(load_words16([&](int lane) __attribute__((always_inline)) {
                     return static_cast<const void*>(from + offset[4 * lane + k]);
                   }),
                   In{});
  }

  template <int k>
  GEOLOC_FAST_INLINE F32 pixel(const In* upper, const In* lower, const int32_t* offset, const F32 (&weight)[4]) {
    constexpr int kLookBack = kChannels == 3 ? 1 : 0, kRight = kChannels - kLookBack;
    const F32 left = weighted(taps<k>(upper, offset), words_f32<k * 0x55>(weight[0])) +
                     weighted(taps<k>(lower, offset), words_f32<k * 0x55>(weight[2]));
    const F32 right = weighted(taps<k>(upper + kRight, offset), words_f32<k * 0x55>(weight[1])) +
                      weighted(taps<k>(lower + kRight, offset), words_f32<k * 0x55>(weight[3]));
    return left + (kLookBack ? words_f32<0x39>(right) : right);
  }

  GEOLOC_FAST_INLINE void pixels(const In* image, const FloatRow& row, int at, int64_t stride_row,
                                 F32 (&value)[kChannels]) {
    const int32_t* offset = row.offset + at;
    const F32 weight[4] = {load_f32(row.weight[0] + at), load_f32(row.weight[1] + at), load_f32(row.weight[2] + at),
                           load_f32(row.weight[3] + at)};
    const In* lower = image + stride_row;
    const I32 by_pixel[4] = {(I32)pixel<0>(image, lower, offset, weight), (I32)pixel<1>(image, lower, offset, weight),
                             (I32)pixel<2>(image, lower, offset, weight), (I32)pixel<3>(image, lower, offset, weight)};
    I32 channel[4];
    transpose4<kChannels>(by_pixel, channel);
    for (int c = 0; c < kChannels; ++c) value[c] = (F32)channel[c];
  }
};

// Floats, columns beside each other: a load of two elements a row of taps.
template <typename In>
struct FloatsPlanar : FloatPath<In> {
  static constexpr int kChannels = 1;
  static constexpr bool kApart = true;

  // Left and right taps of kPixels positions.
  GEOLOC_FAST_INLINE void taps(const In* from, const int32_t* offset, F32* left, F32* right) {
    if constexpr (sizeof(In) == 4) {
      auto two = [&](int first) __attribute__((always_inline)) {
        return (F32)lanes([&](int lane) __attribute__((always_inline)) {
          const int32_t* at = offset + 4 * lane + first;
          return _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(_mm_loadl_epi64(bytes16(from + at[0]))),
                                               reinterpret_cast<const double*>(from + at[1])));
        });
      };
      const F32 low = two(0), high = two(2);
      *left = shuffle<0x88>(low, high);
      *right = shuffle<0xdd>(low, high);
    } else {
      const U32 both = (U32)lanes([&](int lane) __attribute__((always_inline)) {
        int32_t pair[4];
        for (int k = 0; k < 4; ++k) __builtin_memcpy(pair + k, from + offset[4 * lane + k], 4);
        return _mm_setr_epi32(pair[0], pair[1], pair[2], pair[3]);
      });
      *left = widen(both & 0xffffu, In{});
      *right = widen(both >> 16, In{});
    }
  }

  GEOLOC_FAST_INLINE void pixels(const In* image, const FloatRow& row, int at, int64_t stride_row, F32 (&value)[1]) {
    F32 upper_left, upper_right, lower_left, lower_right;
    taps(image, row.offset + at, &upper_left, &upper_right);
    taps(image + stride_row, row.offset + at, &lower_left, &lower_right);
    value[0] =
        weighted(upper_left, load_f32(row.weight[0] + at)) + weighted(lower_left, load_f32(row.weight[2] + at)) +
        (weighted(upper_right, load_f32(row.weight[1] + at)) + weighted(lower_right, load_f32(row.weight[3] + at)));
  }
};

// One surface (an image, or one channel of it) through a filled tile. Reads are scattered over memory, so
// they are asked for kAhead rows early: the upper tap of every fourth pixel and the lower one of every other
// fourth. After the last rows come the first ones of `next`.
template <typename Path>
void resample_surface(const typename Path::In* surface, const typename Path::In* next, const typename Path::Row* rows,
                      const Item& item, const PolarResampleParams& p, int64_t first_plane, int channel) {
  constexpr int64_t kAhead = 16;
  constexpr int kChannels = Path::kChannels;
  F32 scale[kChannels], offset[kChannels];
  for (int c = 0; c < kChannels; ++c) {
    scale[c] = splat_f32(p.normalize ? p.scale[channel + c] * Path::kUnit : Path::kUnit);
    offset[c] = splat_f32(p.normalize ? p.offset[channel + c] : 0.0f);
  }
  const int64_t plane = p.out_rows * p.out_cols, stride_row = p.stride_row;
  char* const out = static_cast<char*>(p.out);
  int64_t to = first_plane * plane + item.row * p.out_cols + item.column;
  for (int64_t i = 0; i < item.rows; ++i, to += p.out_cols) {
    const bool here = i + kAhead < item.rows;
    const int64_t ahead = here ? i + kAhead : i + kAhead - item.rows;
    if (ahead < item.rows) {
      const typename Path::In* from = here ? surface : next;
#pragma GCC unroll 8
      for (int k = 0; k < kTileColumns; k += 2)
        __builtin_prefetch(from + rows[ahead].offset[k] + (k & 2 ? stride_row : 0));
    }
#pragma GCC unroll 1
    for (int at = 0; at < kTileColumns; at += kPixels) {
      const int64_t columns = item.columns - at;
      if (columns <= 0) break;
      F32 value[kChannels];
      Path::pixels(surface, rows[i], at, stride_row, value);
#pragma GCC unroll 4
      for (int c = 0; c < kChannels; ++c) value[c] = value[c] * scale[c] + offset[c];
      switch (p.out_dtype) {
        case DType::kFloat32: store_pixels<float>(out, to + at, plane, columns, value); break;
        case DType::kBFloat16: store_pixels<BFloat16>(out, to + at, plane, columns, value); break;
        case DType::kFloat16: store_pixels<Float16>(out, to + at, plane, columns, value); break;
        case DType::kUInt8: store_pixels<uint8_t>(out, to + at, plane, columns, value); break;
      }
    }
  }
}

bool same_geometry(const PolarGeometry& p) {
  const PolarView first = polar_view(p, 0);
  for (int64_t b = 1; b < p.batch; ++b) {
    const PolarView view = polar_view(p, b);
    if (view.center_row != first.center_row || view.center_col != first.center_col ||
        view.max_radius != first.max_radius || view.heading_deg != first.heading_deg)
      return false;
  }
  return true;
}

template <typename Path>
void resample_fast(const PolarResampleParams& p, int threads) {
  auto tile = [&](const Item& item, const PolarView& view, const Angles& angles) {
    typename Path::Row rows[Path::kRows];
    Path::fill(rows, item, p, view, angles);
    const int64_t surfaces = Path::kApart ? p.channels : 1, count = item.images * surfaces;
    const auto surface = [&](int64_t n) {
      return static_cast<const typename Path::In*>(p.images) + (item.image + n / surfaces) * p.stride_batch +
             n % surfaces * p.stride_channel;
    };
    for (int64_t n = 0; n < count; ++n) {
      const int64_t channel = n % surfaces;
      resample_surface<Path>(surface(n), surface(n + 1 < count ? n + 1 : n), rows, item, p,
                             (item.image + n / surfaces) * p.channels + channel, static_cast<int>(channel));
    }
  };
  const int64_t group = !same_geometry(p) ? 1 : p.batch < 8 ? p.batch : 8;
  for_items(p, group, Path::kRows, threads, tile);
}

template <typename In>
void resample_floats(const PolarResampleParams& p, PolarPath path, int threads) {
  if (path == PolarPath::kRgb) return resample_fast<FloatsAcross<In, 3>>(p, threads);
  if (path == PolarPath::kRgba) return resample_fast<FloatsAcross<In, 4>>(p, threads);
  return resample_fast<FloatsPlanar<In>>(p, threads);
}

#endif  // GEOLOC_FAST_POLAR_LANES

}  // namespace

Status polar_resample(const PolarResampleParams& p, PolarPath path, int threads) {
  if (p.batch == 0 || p.channels == 0 || p.out_rows == 0 || p.out_cols == 0) return Status::kOk;
  switch (path) {
#if defined(GEOLOC_FAST_POLAR_LANES)
    case PolarPath::kRgb8: resample_fast<BytesAcross<3>>(p, threads); return Status::kOk;
    case PolarPath::kRgba8: resample_fast<BytesAcross<4>>(p, threads); return Status::kOk;
    case PolarPath::kPlanar8: resample_fast<BytesPlanar>(p, threads); return Status::kOk;
    case PolarPath::kRgb:
    case PolarPath::kRgba:
    case PolarPath::kPlanar:
      if (p.images_dtype == DType::kFloat16) resample_floats<Float16>(p, path, threads);
      if (p.images_dtype == DType::kBFloat16) resample_floats<BFloat16>(p, path, threads);
      if (p.images_dtype == DType::kFloat32) resample_floats<float>(p, path, threads);
      return Status::kOk;
#endif
    default: break;
  }
  switch (p.images_dtype) {
    case DType::kUInt8: resample_generic<uint8_t>(p, threads); return Status::kOk;
    case DType::kFloat16: resample_generic<Float16>(p, threads); return Status::kOk;
    case DType::kBFloat16: resample_generic<BFloat16>(p, threads); return Status::kOk;
    case DType::kFloat32: resample_generic<float>(p, threads); return Status::kOk;
  }
  return Status::kBadDType;
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
