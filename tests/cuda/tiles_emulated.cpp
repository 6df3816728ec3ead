// The kernels of csrc/cuda/tiles.cuh on a CPU, and the arithmetic behind them, for tests/cuda/test_tiles.py. Arguments
// are arrays of int64, pointers among them; a function returns null or what went wrong.

#define TILEDATTN_EMULATOR "emulator/cuda.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <vector>

#include "cuda/tiles.cuh"

namespace tiledattn::cuda {
namespace {

struct Range {
  int64_t begin, end, writable;
};

std::vector<Range>& ranges() {
  static std::vector<Range> named;
  return named;
}

/// Where results have been written.
std::unordered_set<int64_t>& written() {
  static std::unordered_set<int64_t> places;
  return places;
}

}  // namespace

void check_access(const void* at, int bytes, bool write) {
  const auto begin = reinterpret_cast<int64_t>(at);
  if (begin % bytes != 0) emulator::fail("misaligned access of " + std::to_string(bytes) + " bytes");
  for (const Range& range : ranges()) {
    if (begin < range.begin || begin + bytes > range.end || (write && !range.writable)) continue;
    if (write && !written().insert(begin).second) emulator::fail("a place is written twice");
    return;
  }
  emulator::fail("an access of " + std::to_string(bytes) + " bytes outside the named memory");
}

}  // namespace tiledattn::cuda

namespace {

using namespace tiledattn;
using namespace tiledattn::cuda;

Axes read_axes(const int64_t* values) {
  Axes axes;
  for (int i = 0; i < 3; ++i) {
    axes[i] = {values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3] != 0};
  }
  return axes;
}

/// [data, batch, channels, stride of tile, batch, channel, z, y, x]
Image read_image(const int64_t* values) {
  Image image{};
  image.data = reinterpret_cast<const void*>(values[0]);
  image.batch = values[1], image.channels = values[2];
  image.tile_stride = values[3], image.batch_stride = values[4], image.channel_stride = values[5];
  for (int i = 0; i < 3; ++i) image.stride[i] = values[6 + i];
  return image;
}

PlaceTables read_tables(const int64_t* values) {
  PlaceTables tables;
  for (int i = 0; i < 3; ++i) tables[i] = reinterpret_cast<const AxisPlace*>(values[i]);
  return tables;
}

const char* kept(const std::string& message) {
  static std::string last;
  last = message;
  return last.c_str();
}

/// [element type, unit, out, most elements of an access, threads of a block, threads that are enough, seed, number of
/// ranges, ranges...]
struct Options {
  ElementType type;
  int64_t unit;
  void* out;
  TileLimits limits;
  unsigned seed;

  explicit Options(const int64_t* values) {
    type = static_cast<ElementType>(values[0]), unit = values[1], out = reinterpret_cast<void*>(values[2]);
    limits.vector = values[3], limits.threads = values[4], limits.many = values[5];
    seed = static_cast<unsigned>(values[6]);
    ranges().clear(), written().clear();
    for (int64_t i = 0; i < values[7]; ++i) {
      const int64_t* range = values + 8 + 3 * i;
      ranges().push_back({range[0], range[1], range[2]});
    }
  }
};

template <typename Call>
const char* emulated(const char* error, const Call& call, unsigned seed, int64_t* vector) {
  if (error) return error;
  *vector = call.vector;
  return with_kernel(call, [seed](auto kernel, const Call& arguments) -> const char* {
    const dim3 blocks{arguments.work.grid_x, arguments.work.grid_y, 1};
    const dim3 threads{arguments.work.across, arguments.work.down, 1};
    try {
      emulator::launch(blocks, threads, 0, seed, [&] { kernel(arguments); });
    } catch (const std::exception& problem) {
      return kept(problem.what());
    }
    return nullptr;
  });
}

/// `sizes` are those of deal_out: results, rows, z, y, width, rows of a thread, most times as many, threads,
/// threads that are enough.
const char* deal_out_sizes(TileWork& work, const int64_t* sizes) {
  TileLimits limits;
  limits.threads = sizes[7], limits.many = sizes[8];
  return deal_out(work, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], limits);
}

}  // namespace

extern "C" {

const char* emulate_extract(const int64_t* axes, const int64_t* image, const int64_t* tables, const int64_t* options,
                            int64_t* vector) {
  const Options o(options);
  CopyTiles call{};
  const char* error =
      make_extract(call, read_axes(axes), o.type, read_image(image), read_tables(tables), o.unit, o.out, o.limits);
  return emulated(error, call, o.seed, vector);
}

const char* emulate_pad(const int64_t* axes, const int64_t* image, const int64_t* tables, const int64_t* pad,
                        const int64_t* options, int64_t* vector) {
  const Options o(options);
  std::array<Ring, 3> rings;
  for (int i = 0; i < 3; ++i) rings[i] = {pad[2 * i], pad[2 * i + 1]};
  CopyTiles call{};
  const char* error =
      make_pad(call, read_axes(axes), rings, o.type, read_image(image), read_tables(tables), o.unit, o.out, o.limits);
  return emulated(error, call, o.seed, vector);
}

const char* emulate_blend(const int64_t* axes, const int64_t* image, const int64_t* tables, const int64_t* counts,
                          const int64_t* weights, const int64_t* options, int64_t* vector) {
  const Options o(options);
  std::array<const void*, 3> windows;
  for (int i = 0; i < 3; ++i) windows[i] = reinterpret_cast<const void*>(weights[i]);
  BlendTiles call{};
  const char* error = make_blend(call, read_axes(axes), o.type, read_image(image), read_tables(tables),
                                 {counts[0], counts[1], counts[2]}, o.unit, windows, o.out, o.limits);
  return emulated(error, call, o.seed, vector);
}

uint32_t divide(int64_t value, uint32_t n) { return quotient(divisor(value), n); }

int64_t count_tiles(const int64_t* axis) { return axis_tiles({axis[0], axis[1], axis[2], axis[3] != 0}); }

/// What the thread [block x, block y, thread x, thread y] serves: `found` [outer, row, z, y, x, line, inside, offset,
/// blocks x, blocks y, threads x, threads y].
const char* find_spot(const int64_t* sizes, const int64_t* thread, int64_t* found) {
  TileWork work;
  const char* error = deal_out_sizes(work, sizes);
  if (error) return error;
  const auto at = [&](int i) { return static_cast<uint32_t>(thread[i]); };
  const TileSpot s = spot_of(work, at(0), at(1), at(2), at(3));
  const int64_t values[] = {s.outer,     s.row,       s.z,         s.y,
                            s.x,         s.line,      s.inside,    result_offset(work, s),
                            work.grid_x, work.grid_y, work.across, work.down};
  std::copy(std::begin(values), std::end(values), found);
  return nullptr;
}

/// How often each vector of the results is served, `counts` [outer, rows, z, y, width].
const char* count_served(const int64_t* sizes, int64_t* counts) {
  TileWork work;
  const char* error = deal_out_sizes(work, sizes);
  if (error) return error;
  for (uint32_t by = 0; by < work.grid_y; ++by) {
    for (uint32_t bx = 0; bx < work.grid_x; ++bx) {
      for (uint32_t thread = 0; thread < work.across * work.down; ++thread) {
        const TileSpot s = spot_of(work, bx, by, thread % work.across, thread / work.across);
        if (!s.inside) continue;
        for (uint32_t i = 0; i < work.repeat; ++i) {
          if (s.row + i * work.down < work.rows) ++counts[result_offset(work, s) + i * result_step(work)];
        }
      }
    }
  }
  return nullptr;
}

/// The elements of one access, of a source at `data` with strides (tile, batch, row, z, y, x) in bytes.
int64_t width_of(int64_t data, int64_t out, int64_t unit, int64_t element_size, const int64_t* strides) {
  TileSource source{};
  source.data = reinterpret_cast<const char*>(data);
  source.tile_stride = strides[0], source.batch_stride = strides[1], source.row_stride = strides[2];
  for (int i = 0; i < 3; ++i) source.stride[i] = strides[3 + i];
  return vector_width(source, reinterpret_cast<const void*>(out), unit, element_size);
}

}  // extern "C"
