// Packing: rows of q, k and v, at any strides, into what the products of attention_block.h read in order.
//
//   keys     [key][key_row]                            a key's elements (or pairs) in a row
//   values   [block of keys][dims / 4][keys or pairs of keys][4]
//   queries  [key_row][rows of the block]              transposed: a vector holds one dim of several queries
//   sums     [value_row][rows of the block]            likewise
#pragma once

#include "cpu/attention_elements.h"

namespace tiledattn::TILEDATTN_ISA {

/// Asks for a row that will be read later: rows lie far apart, and the processor doesn't guess the next. For the
/// first-level cache, or with `kLocality` 2 the second-level one.
template <class Products, int kLocality = 3>
inline void fetch_ahead(const void* data, int64_t at, int64_t dim) {
  constexpr int64_t bytes = Products::type == AttentionType::float32 ? 4 : 2;
  const char* row = static_cast<const char*>(data) + at * bytes;
  for (int64_t byte = 0; byte < dim * bytes; byte += 64) __builtin_prefetch(row + byte, 0, kLocality);
}

constexpr int64_t kAhead = 4;

/// Rows at `offsets` of q, transposed; lanes without a row are zeros.
template <class Products>
void pack_queries(const void* q, const int64_t* offsets, int64_t rows, int64_t lanes, int64_t dim, float* packed) {
  const int64_t units = (dim + Products::pack - 1) / Products::pack;
  for (int64_t first = 0; first < lanes; first += kWidth) {
    for (int64_t unit = 0; unit < units; unit += kWidth) {
      Vec square[kWidth];
      for (int64_t i = 0; i < kWidth; ++i) {
        const int64_t at = unit * Products::pack;
        square[i] = first + i < rows ? Products::load_row(q, offsets[first + i] + at, dim - at) : Vec::zero();
      }
      transpose(square);
      for (int64_t i = 0; i < kWidth; ++i) store(packed + (unit + i) * lanes + first, square[i]);
    }
  }
}

/// Where a packed key's element (or pair) `unit`, a multiple of kWidth, and those after it lie.
template <class Products>
inline int64_t place_of_key(int64_t key, int64_t unit, int64_t key_row) {
  if constexpr (!Products::matrices) return key * key_row + unit;
  return key / kSquareRows * (kSquareRows * key_row) + unit * kSquareRows + key % kSquareRows * kMatrix;
}

/// Keys at `offsets`, then zeros up to `padded` of them.
template <class Products>
void pack_keys(const void* k, const int64_t* offsets, int64_t count, int64_t padded, int64_t dim, int64_t key_row,
               float* packed) {
  const int64_t units = (dim + Products::pack - 1) / Products::pack;
  for (int64_t key = 0; key < padded; ++key) {
    if (key + kAhead < count) fetch_ahead<Products>(k, offsets[key + kAhead], dim);
    for (int64_t unit = 0; unit < units; unit += kWidth) {
      const int64_t at = unit * Products::pack;
      const Vec row = key < count ? Products::load_row(k, offsets[key] + at, dim - at) : Vec::zero();
      store(packed + place_of_key<Products>(key, unit, key_row), row);
    }
  }
}

/// Values at `offsets`, then zeros up to `padded` of them.
template <class Products>
void pack_values(const void* v, const int64_t* offsets, int64_t count, int64_t padded, int64_t dim, int64_t value_row,
                 float* packed) {
  constexpr int64_t steps = kBlockKeys / Products::pack, stride = steps * kGroup;
  for (int64_t key = 0; key < padded; key += Products::pack) {
    if (key + kAhead < count) fetch_ahead<Products>(v, offsets[key + kAhead], dim);
    if (Products::pack > 1 && key + kAhead + 1 < count) fetch_ahead<Products>(v, offsets[key + kAhead + 1], dim);
    float* place = packed + key / kBlockKeys * (steps * value_row) + key % kBlockKeys / Products::pack * kGroup;
    for (int64_t d = 0; d < dim; d += kWidth) {
      const Vec lanes = Products::load_values(v, offsets + key, count - key, d, dim - d);
      store_quarters(place + d / kGroup * stride, stride, lanes);
    }
  }
}

/// Sums, transposed back, times a factor per row, into rows at `offsets` of out.
template <class Products>
void store_rows(const float* sums, const float* factors, const int64_t* offsets, int64_t rows, int64_t lanes,
                int64_t dim, void* out) {
  for (int64_t first = 0; first < rows; first += kWidth) {
    const Vec factor = load(factors + first);
    for (int64_t d = 0; d < dim; d += kWidth) {
      Vec square[kWidth];
      for (int64_t i = 0; i < kWidth; ++i) square[i] = load(sums + (d + i) * lanes + first) * factor;
      transpose(square);
      for (int64_t i = 0; i < smaller(kWidth, rows - first); ++i) {
        store_from_floats<Products::type>(out, offsets[first + i] + d, square[i], dim - d);
      }
    }
  }
}

}  // namespace tiledattn::TILEDATTN_ISA
