// Attention, copies, blending and group norms of the library, without torch, against sums written out in double
// precision. `driver` exits 0 when all agree; `driver fault` plants an error in every result and must exit 1.

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/attention.h"
#include "cpu/attention_backward.h"
#include "norm.h"
#include "tiles.h"

using namespace tiledattn;

namespace {

bool plant_faults = false;
int failures = 0;
std::mt19937 generator(7);

/// An element type: how numbers are stored, and how far apart those near 1 are.
struct Float {
  using Stored = float;
  static constexpr ElementType kElement = ElementType::float32;
  static constexpr AttentionType kAttention = AttentionType::float32;
  static constexpr double kUnit = 1.2e-7;
  static Stored store(double x) { return static_cast<float>(x); }
  static double load(Stored x) { return x; }
};

struct Half {
  using Stored = __fp16;
  static constexpr ElementType kElement = ElementType::float16;
  static constexpr AttentionType kAttention = AttentionType::float16;
  static constexpr double kUnit = 9.8e-4;
  static Stored store(double x) { return static_cast<__fp16>(x); }
  static double load(Stored x) { return static_cast<double>(x); }
};

struct Brain {
  using Stored = uint16_t;
  static constexpr ElementType kElement = ElementType::bfloat16;
  static constexpr AttentionType kAttention = AttentionType::bfloat16;
  static constexpr double kUnit = 7.8e-3;
  static Stored store(double x) {
    const float single = static_cast<float>(x);
    uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static double load(Stored x) {
    const uint32_t bits = uint32_t{x} << 16;
    float single;
    std::memcpy(&single, &bits, sizeof single);
    return single;
  }
};

/// Runs everything at once, or in pieces of at most 3, last piece first: results must not depend on it.
void run_whole(int64_t count, int64_t, Parallel::Body body, void* context) { body(0, count, context); }
void run_pieces(int64_t count, int64_t, Parallel::Body body, void* context) {
  for (int64_t end = count; end > 0; end -= 3) body(end < 3 ? 0 : end - 3, end, context);
}
const Parallel kWhole{run_whole, 1}, kPieces{run_pieces, 2};

template <typename T>
std::vector<typename T::Stored> random_numbers(int64_t count) {
  std::normal_distribution<double> normal;
  std::vector<typename T::Stored> numbers(count);
  for (auto& x : numbers) x = T::store(normal(generator));
  return numbers;
}

template <typename T>
std::vector<typename T::Stored> nothing(int64_t count) {
  return std::vector<typename T::Stored>(count, T::store(NAN));
}

/// Norm of the difference over the norm of the exact value; NaN fails.
template <typename T>
void check(const char* name, std::vector<typename T::Stored> found, const std::vector<double>& exact, double units) {
  if (plant_faults) found[found.size() / 2] = T::store(T::load(found[found.size() / 2]) + 30.0);
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double error = T::load(found[i]) - exact[i];
    difference += error * error;
    norm += exact[i] * exact[i];
  }
  const double error = std::sqrt(difference / norm);
  const bool good = found.size() == exact.size() && error <= units * T::kUnit;
  std::printf("%s %s: error %.2e, allowed %.2e\n", good ? "right" : "WRONG", name, error, units * T::kUnit);
  failures += !good;
}

// attention: three tiles in a row, grouped heads, a masked prefix
constexpr int64_t kTiles = 3, kBatch = 2, kPrefix = 3, kTokens = 45, kHeads = 4, kKvHeads = 2, kHalo = 7;
constexpr int64_t kSequence = kPrefix + kTokens;
constexpr float kHaloWeight = 0.5f;

struct Inputs {
  int64_t dim;
  std::vector<double> q, k, v;
  std::vector<char> mask;

  double dot(int64_t tile, int64_t b, int64_t row, int64_t h, int64_t of, int64_t column) const {
    double sum = 0.0;
    for (int64_t d = 0; d < dim; ++d) {
      sum += q[(((tile * kBatch + b) * kSequence + row) * kHeads + h) * dim + d] * k[kv(of, b, column, h) + d];
    }
    return sum / std::sqrt(static_cast<double>(dim));
  }
  int64_t kv(int64_t of, int64_t b, int64_t column, int64_t h) const {
    return (((of * kBatch + b) * kSequence + column) * kKvHeads + h / (kHeads / kKvHeads)) * dim;
  }
};

struct Column {
  int64_t tile, place;
  double bias;
};

std::vector<Column> columns_of(const Inputs& inputs, int64_t tile, int64_t b, bool canvas) {
  std::vector<Column> columns;
  for (int64_t s = 0; s < kSequence; ++s) {
    if (s >= kPrefix || inputs.mask[(tile * kBatch + b) * kPrefix + s]) columns.push_back({tile, s, 0.0});
  }
  for (int64_t i = 0; canvas && i < kHalo; ++i) {
    if (tile > 0) columns.push_back({tile - 1, kSequence - kHalo + i, std::log(double{kHaloWeight})});
    if (tile < kTiles - 1) columns.push_back({tile + 1, kPrefix + i, std::log(double{kHaloWeight})});
  }
  return columns;
}

void attend(const Inputs& inputs, std::vector<double>& out, std::vector<double>& lse) {
  for (int64_t t = 0; t < kTiles; ++t) {
    for (int64_t b = 0; b < kBatch; ++b) {
      for (int64_t row = 0; row < kSequence; ++row) {
        const std::vector<Column> columns = columns_of(inputs, t, b, row >= kPrefix);
        for (int64_t h = 0; h < kHeads; ++h) {
          double sum = 0.0;
          double* result = &out[(((t * kBatch + b) * kSequence + row) * kHeads + h) * inputs.dim];
          for (const Column& column : columns) {
            const double p = std::exp(inputs.dot(t, b, row, h, column.tile, column.place) + column.bias);
            sum += p;
            const double* value = &inputs.v[inputs.kv(column.tile, b, column.place, h)];
            for (int64_t d = 0; d < inputs.dim; ++d) result[d] += p * value[d];
          }
          for (int64_t d = 0; d < inputs.dim; ++d) result[d] /= sum;
          lse[((t * kBatch + b) * kHeads + h) * kSequence + row] = std::log(sum);
        }
      }
    }
  }
}

/// dq, dk and dv of sum(weights * out).
std::array<std::vector<double>, 3> differentiate(const Inputs& inputs, const std::vector<double>& out,
                                                 const std::vector<double>& lse, const std::vector<double>& weights) {
  std::array<std::vector<double>, 3> found;
  found[0].resize(inputs.q.size()), found[1].resize(inputs.k.size()), found[2].resize(inputs.v.size());
  const double scale = 1.0 / std::sqrt(static_cast<double>(inputs.dim));
  for (int64_t row = 0; row < kTiles * kBatch * kSequence; ++row) {
    const int64_t t = row / kSequence / kBatch, b = row / kSequence % kBatch, s = row % kSequence;
    const std::vector<Column> columns = columns_of(inputs, t, b, s >= kPrefix);
    for (int64_t h = 0; h < kHeads; ++h) {
      const int64_t q = (row * kHeads + h) * inputs.dim;
      double delta = 0.0;
      for (int64_t d = 0; d < inputs.dim; ++d) delta += weights[q + d] * out[q + d];
      for (const Column& column : columns) {
        const int64_t k = inputs.kv(column.tile, b, column.place, h);
        const double logit = inputs.dot(t, b, s, h, column.tile, column.place) + column.bias;
        const double p = std::exp(logit - lse[((t * kBatch + b) * kHeads + h) * kSequence + s]);
        double change = -delta;
        for (int64_t d = 0; d < inputs.dim; ++d) change += weights[q + d] * inputs.v[k + d];
        for (int64_t d = 0; d < inputs.dim; ++d) {
          found[0][q + d] += scale * p * change * inputs.k[k + d];
          found[1][k + d] += scale * p * change * inputs.q[q + d];
          found[2][k + d] += p * weights[q + d];
        }
      }
    }
  }
  return found;
}

template <typename T>
std::vector<double> widened(const std::vector<typename T::Stored>& numbers) {
  std::vector<double> wide;
  for (const auto& x : numbers) wide.push_back(T::load(x));
  return wide;
}

/// The gradients of a call whose results are there.
template <typename T>
void check_gradients(const Inputs& inputs, const AttentionCall& forward,
                     const std::array<std::vector<double>, 3>& exact, const std::vector<typename T::Stored>& weights,
                     const Parallel& parallel) {
  // the ends of every tile are seen by its neighbours, the rest by nobody else
  std::vector<int32_t> tokens(kTokens);
  for (int32_t i = 0; i < kTokens; ++i) tokens[i] = i;
  const int32_t classes[] = {0, 1, 2}, borrowers[] = {-1, 1};
  const int64_t starts[] = {0, 2, 5, 7}, rest = kTokens - kHalo;
  const Cell cells[] = {{0, rest, 0, 0},     {rest, kHalo, 1, 1}, {0, kHalo, 0, 1},   {kHalo, rest - kHalo, 0, 0},
                        {rest, kHalo, 1, 1}, {0, kHalo, 0, 1},    {kHalo, rest, 0, 0}};
  AttentionBackwardCall call{};
  call.forward = forward;
  call.out = call.grad_out = forward.q;
  call.out.data = forward.out, call.grad_out.data = weights.data(), call.lse = forward.lse;
  call.reversed = {classes, starts, cells, tokens.data(), borrowers, 3, kTokens, 2};
  auto dq = nothing<T>(inputs.q.size()), dk = nothing<T>(inputs.k.size()), dv = nothing<T>(inputs.v.size());
  call.grad_q = dq.data(), call.grad_k = dk.data(), call.grad_v = dv.data();
  if (const char* error = attention_backward_error(call)) {
    std::printf("WRONG reversed tables: %s\n", error);
    ++failures;
    return;
  }
  std::vector<char> scratch(attention_backward_scratch_bytes(call, parallel.threads));
  attention_backward(call, scratch.data(), parallel);
  check<T>("dq", dq, exact[0], 8.0);
  check<T>("dk", dk, exact[1], 8.0);
  check<T>("dv", dv, exact[2], 8.0);
}

template <typename T>
void check_attention(int64_t dim) {
  const int64_t rows = kTiles * kBatch * kSequence;
  const auto q = random_numbers<T>(rows * kHeads * dim), k = random_numbers<T>(rows * kKvHeads * dim),
             v = random_numbers<T>(rows * kKvHeads * dim);
  Inputs inputs{dim, widened<T>(q), widened<T>(k), widened<T>(v), std::vector<char>(kTiles * kBatch * kPrefix)};
  for (size_t i = 0; i < inputs.mask.size(); ++i) inputs.mask[i] = i % 3 != 1;
  std::vector<double> exact(rows * kHeads * dim), exact_lse(kTiles * kBatch * kHeads * kSequence);
  attend(inputs, exact, exact_lse);
  const auto weights = random_numbers<T>(rows * kHeads * dim);
  const auto exact_gradients = differentiate(inputs, exact, exact_lse, widened<T>(weights));

  const int32_t classes[] = {0, 1, 2};
  const int64_t starts[] = {0, 1, 3, 4};
  const int32_t tokens = kTokens, halo = kHalo;
  const TokenRun runs[] = {{tokens, halo}, {-halo, halo}, {tokens, halo}, {-halo, halo}};
  AttentionCall call{};
  call.type = T::kAttention;
  call.tiles = call.pool_tiles = kTiles, call.batch = kBatch, call.sequence = kSequence;
  call.heads = kHeads, call.kv_heads = kKvHeads, call.head_dim = dim, call.prefix = kPrefix;
  const int64_t of_q = kHeads * dim, of_k = kKvHeads * dim;
  call.q = {q.data(), {kBatch * kSequence * of_q, kSequence * of_q, of_q, dim}};
  call.k = {k.data(), {kBatch * kSequence * of_k, kSequence * of_k, of_k, dim}};
  call.v = {v.data(), {kBatch * kSequence * of_k, kSequence * of_k, of_k, dim}};
  std::memcpy(call.out_stride, call.q.stride, sizeof call.out_stride);
  call.prefix_mask = reinterpret_cast<const bool*>(inputs.mask.data());
  call.mask_stride[0] = kBatch * kPrefix, call.mask_stride[1] = kPrefix, call.mask_stride[2] = 1;
  call.halo_weight = kHaloWeight, call.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
  call.class_of_tile = classes, call.run_starts = starts, call.runs = runs, call.classes = 3;
  if (const char* error = attention_error(call)) {
    std::printf("WRONG tables: %s\n", error);
    ++failures;
    return;
  }
  for (const Parallel& parallel : {kWhole, kPieces}) {
    auto out = nothing<T>(rows * kHeads * dim);
    auto lse = nothing<Float>(kTiles * kBatch * kHeads * kSequence);
    std::vector<char> scratch(attention_scratch_bytes(call, parallel.threads));
    call.out = out.data(), call.lse = lse.data();
    attention(call, scratch.data(), parallel);
    check<T>("attention", out, exact, 4.0);
    check<Float>("lse", lse, exact_lse, T::kAttention == AttentionType::float32 ? 4.0 : 200.0);
    check_gradients<T>(inputs, call, exact_gradients, weights, parallel);
  }
}

// tiles: a canvas of two axes, the second periodic, and a leading axis of one position
const Axes kAxes = {Axis{}, Axis{11, 5, 2, false}, Axis{30, 9, 1, true}};
constexpr int64_t kChannels = 3;

/// Calls function(tile, channel, y, x, canvas y, canvas x) for every position of every tile.
template <typename Function>
void for_each_position(const Axes& axes, int64_t ring, const Function& function) {
  const auto rows = axis_origins(axes[1]), columns = axis_origins(axes[2]);
  for (size_t i = 0; i < rows.size() * columns.size(); ++i) {
    const int64_t top = rows[i / columns.size()], left = columns[i % columns.size()];
    for (int64_t c = 0; c < kChannels; ++c) {
      for (int64_t y = -ring; y < axes[1].tile + ring; ++y) {
        for (int64_t x = -ring; x < axes[2].tile + ring; ++x) function(i, c, y, x, top + y, left + x);
      }
    }
  }
}

int64_t tiles_of(const Axes& axes) {
  return static_cast<int64_t>(axis_origins(axes[1]).size() * axis_origins(axes[2]).size());
}

template <typename T>
Image image_of(const Axes& axes, const std::vector<typename T::Stored>& numbers, bool tiled) {
  const int64_t height = tiled ? axes[1].tile : axes[1].length, width = tiled ? axes[2].tile : axes[2].length;
  const int64_t all = kChannels * height * width;
  return {numbers.data(), 1, kChannels, tiled ? all : 0, all, height * width, {0, width, 1}};
}

/// The canvas as tiles with a ring, zeros outside; numbers that the type holds.
template <typename T>
std::vector<double> cut(const Axes& axes, const std::vector<typename T::Stored>& canvas, int64_t ring) {
  std::vector<double> tiles;
  for_each_position(axes, ring, [&](int64_t, int64_t c, int64_t, int64_t, int64_t y, int64_t x) {
    const int64_t place = (c * axes[1].length + y) * axes[2].length + modulo(x, axes[2].length);
    tiles.push_back(y >= 0 && y < axes[1].length ? T::load(canvas[place]) : 0.0);
  });
  return tiles;
}

template <typename T>
void check_copies() {
  for (const Parallel& parallel : {kWhole, kPieces}) {
    const auto canvas = random_numbers<T>(kChannels * kAxes[1].length * kAxes[2].length);
    auto tiles = nothing<T>(tiles_of(kAxes) * kChannels * kAxes[1].tile * kAxes[2].tile);
    extract_tiles(kAxes, T::kElement, image_of<T>(kAxes, canvas, false), tiles.data(), parallel);
    check<T>("extraction", tiles, cut<T>(kAxes, canvas, 0), 0.0);

    auto padded = nothing<T>(tiles_of(kAxes) * kChannels * (kAxes[1].tile + 2) * (kAxes[2].tile + 2));
    pad_tiles(kAxes, {Ring{}, Ring{1, 1}, Ring{1, 1}}, T::kElement, image_of<T>(kAxes, tiles, true), padded.data(),
              parallel);
    check<T>("padding", padded, cut<T>(kAxes, canvas, 1), 0.0);
  }
}

template <typename T>
void check_blending() {
  const auto tiles = random_numbers<T>(tiles_of(kAxes) * kChannels * kAxes[1].tile * kAxes[2].tile);
  std::vector<double> sum(kChannels * kAxes[1].length * kAxes[2].length), count(sum.size());
  size_t next = 0;
  for_each_position(kAxes, 0, [&](int64_t, int64_t c, int64_t, int64_t, int64_t y, int64_t x) {
    const int64_t place = (c * kAxes[1].length + y) * kAxes[2].length + modulo(x, kAxes[2].length);
    sum[place] += T::load(tiles[next++]);
    count[place] += 1.0;
  });
  for (size_t i = 0; i < sum.size(); ++i) sum[i] /= count[i];
  std::array<std::vector<float>, 3> weights;
  for (int axis = 1; axis < 3; ++axis) {
    const auto origins = axis_origins(kAxes[axis]);
    std::vector<int> covers(kAxes[axis].length);
    for (const int64_t origin : origins) {
      for (int64_t i = 0; i < kAxes[axis].tile; ++i) ++covers[modulo(origin + i, kAxes[axis].length)];
    }
    for (const int64_t origin : origins) {
      for (int64_t i = 0; i < kAxes[axis].tile; ++i) {
        weights[axis].push_back(1.0f / static_cast<float>(covers[modulo(origin + i, kAxes[axis].length)]));
      }
    }
  }
  for (const Parallel& parallel : {kWhole, kPieces}) {
    auto canvas = nothing<T>(static_cast<int64_t>(sum.size()));
    blend_tiles(kAxes, T::kElement, image_of<T>(kAxes, tiles, true), {nullptr, weights[1].data(), weights[2].data()},
                canvas.data(), parallel);
    check<T>("blending", canvas, sum, 2.0);
  }
}

/// Over the canvas, each position from the tile that owns it: large means, which must not cancel.
template <typename T>
void check_norm() {
  auto tiles = random_numbers<T>(tiles_of(kAxes) * kChannels * kAxes[1].tile * kAxes[2].tile);
  for (auto& x : tiles) x = T::store(T::load(x) + 8.0);
  const auto weight = random_numbers<T>(kChannels), bias = random_numbers<T>(kChannels);
  const auto rows = axis_owners(kAxes[1]), columns = axis_owners(kAxes[2]);
  const size_t width = axis_origins(kAxes[2]).size();
  std::vector<double> mean(kChannels), variance(kChannels), exact;
  const double count = static_cast<double>(kAxes[1].length * kAxes[2].length), eps = 1e-5;
  const auto over_owned = [&](const auto& function) {
    size_t next = 0;
    for_each_position(kAxes, 0, [&](size_t tile, int64_t c, int64_t, int64_t, int64_t y, int64_t x) {
      const double number = T::load(tiles[next++]);
      const int64_t owner = rows[y] * static_cast<int64_t>(width) + columns[modulo(x, kAxes[2].length)];
      if (owner == static_cast<int64_t>(tile)) function(c, number);
    });
  };
  over_owned([&](int64_t c, double x) { mean[c] += x / count; });
  over_owned([&](int64_t c, double x) { variance[c] += (x - mean[c]) * (x - mean[c]) / count; });
  for_each_position(kAxes, 0, [&](int64_t, int64_t c, int64_t, int64_t, int64_t, int64_t) {
    const double x = (T::load(tiles[exact.size()]) - mean[c]) / std::sqrt(variance[c] + eps);
    exact.push_back(x * T::load(weight[c]) + T::load(bias[c]));
  });
  const GroupNorm norm{kChannels, weight.data(), bias.data(), eps, NormScope::canvas};
  for (const Parallel& parallel : {kWhole, kPieces}) {
    auto out = nothing<T>(static_cast<int64_t>(exact.size()));
    group_norm_tiles(kAxes, T::kElement, image_of<T>(kAxes, tiles, true), norm, out.data(), parallel);
    check<T>("group norm", out, exact, 2.0);
  }
}

template <typename T>
void check_all() {
  for (const int64_t dim : {24, 64, 128}) check_attention<T>(dim);
  check_copies<T>();
  check_blending<T>();
  check_norm<T>();
}

}  // namespace

int main(int count, char** arguments) {
  plant_faults = count > 1 && std::strcmp(arguments[1], "fault") == 0;
  check_all<Float>();
  check_all<Half>();
  check_all<Brain>();
  std::printf("%s, %d wrong\n", name_of(instruction_set()), failures);
  return failures ? 1 : 0;
}
