#include "cpu/norm_kernel.h"

#include "cpu/counter.h"
#include "cpu/norm_rows.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int64_t kPart = 2048, kList = 256;  // elements and rows that are summed up at a time
constexpr int64_t kGathered = 64;             // elements collected at a time where they are not adjacent

/// A box [channels, z, y, x] as few long rows: `length` elements, `step` apart, of each of count[0] x count[1] x
/// count[2].
struct Rows {
  int64_t count[3], stride[3];
  int64_t length, step;
};

inline Rows rows_of(const int64_t (&count)[4], const int64_t (&stride)[4]) {
  Rows rows{{1, 1, 1}, {0, 0, 0}, count[3], stride[3]};
  int d = 2;
  for (; d >= 0; --d) {
    if (count[d] == 1) continue;
    if (rows.length == 1) rows.step = stride[d];
    if (stride[d] != rows.length * rows.step) break;
    rows.length *= count[d];
  }
  for (; d >= 0; --d) rows.count[d] = count[d], rows.stride[d] = stride[d];
  return rows;
}

/// Calls function(row) for the first element of each.
template <typename T, typename Function>
inline void for_each_row(const Rows& rows, const T* first, const Function& function) {
  for (int64_t c = 0; c < rows.count[0]; ++c) {
    for (int64_t z = 0; z < rows.count[1]; ++z) {
      const T* row = first + c * rows.stride[0] + z * rows.stride[1];
      for (int64_t y = 0; y < rows.count[2]; ++y, row += rows.stride[2]) function(row);
    }
  }
}

/// Elements `step` apart, side by side. Never inlined: the loop needs few registers, which would be in memory.
template <typename T>
__attribute__((noinline)) void gather(const T* from, int64_t step, T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i, from += step) to[i] = *from;
}

/// Adds up a box of a tile, some rows at a time: as many as are worth a sum and stay in the first-level cache. Rows are
/// those of a contiguous tile, whatever the strides: the same numbers in the same order.
template <typename T>
class Sum {
 public:
  Sum(const NormTiles& tiles, const int64_t (&count)[4], const int64_t (&stride)[4]) : memory_(rows_of(count, stride)) {
    const int64_t y = tiles.extent[2], z = y * tiles.extent[1];
    rows_ = rows_of(count, {z * tiles.extent[0], z, y, 1});
    for (int d = 0; d < 3; ++d) rows_.stride[d] = stride[d];
    most_ = kPart / rows_.length < kList ? kPart / rows_.length : kList;
  }

  Moments run(const T* first) {
    if (memory_.step == 1 && memory_.length >= rows_.length) {
      for_each_row(rows_, first, [&](const T* row) { most_ > 0 ? list(row) : add_long(row); });
    } else {
      next_ = most_ > 0 ? most_ * rows_.length : kPart;
      for_each_row(memory_, first, [&](const T* row) { collect(row); });
      if (collected_ > 0) add_collected();
    }
    if (listed_ > 0) add_listed();
    return moments_;
  }

 private:
  void list(const T* row) {
    list_[listed_++] = row;
    if (listed_ == most_) add_listed();
  }

  void add_listed() {
    add_rows<T>(moments_, {list_, listed_, rows_.length});
    listed_ = 0;
  }

  void add_row(const T* row, int64_t length) { add_rows<T>(moments_, {&row, 1, length}); }

  void add_long(const T* row) {
    for (int64_t done = 0; done < rows_.length; done += kPart) {
      add_row(row + done, rows_.length - done < kPart ? rows_.length - done : kPart);
    }
  }

  void collect(const T* row) {
    for (int64_t done = 0; done < memory_.length;) {
      const int64_t room = next_ - collected_;
      const int64_t count = memory_.length - done < room ? memory_.length - done : room;
      gather(row + done * memory_.step, memory_.step, elements_ + collected_, count);
      collected_ += count, done += count;
      if (collected_ == next_) add_collected();
    }
  }

  void add_collected() {
    if (most_ > 0) {
      for (int64_t done = 0; done < collected_; done += rows_.length) list_[listed_++] = elements_ + done;
      add_listed();
    } else {
      add_row(elements_, collected_);
      done_ = (done_ + collected_) % rows_.length;
      next_ = rows_.length - done_ < kPart ? rows_.length - done_ : kPart;
    }
    collected_ = 0;
  }

  const Rows memory_;
  Rows rows_;
  Moments moments_;
  int64_t most_, listed_ = 0;                    // rows at a time, 0 where one is more than that
  int64_t done_ = 0, collected_ = 0, next_ = 0;  // of a long row; elements at hand, and how many are added up together
  const T* list_[kList];
  T elements_[kPart];
};

/// Items' places: tile on z, y and x, batch entry, group.
inline Counter<5> items_of(const NormTiles& tiles) {
  return {{tiles.grid[0], tiles.grid[1], tiles.grid[2], tiles.batch, tiles.groups}, {}};
}

/// The first channel of an item's group, at the tile's first position.
template <typename T>
inline const T* group_at(const NormTiles& tiles, const int64_t (&at)[5]) {
  const int64_t tile = (at[0] * tiles.grid[1] + at[1]) * tiles.grid[2] + at[2];
  return reinterpret_cast<const T*>(tiles.source) + tile * tiles.tile_stride + at[3] * tiles.batch_stride +
         at[4] * tiles.depth * tiles.channel_stride;
}

template <typename T>
void measure(const NormMoments& call, int64_t first, int64_t last) {
  const NormTiles& tiles = call.tiles;
  Counter<5> place = items_of(tiles);
  place.seek(first);
  for (int64_t item = first; item < last; ++item, place.next()) {
    const T* from = group_at<T>(tiles, place.at);
    int64_t count[4] = {tiles.depth}, stride[4] = {tiles.channel_stride};
    bool none = false;
    for (int axis = 0; axis < 3; ++axis) {
      const Interval& owned = call.owned[axis][place.at[axis]];
      from += owned.first * tiles.stride[axis];
      count[1 + axis] = owned.count, stride[1 + axis] = tiles.stride[axis];
      none = none || owned.count == 0;
    }
    const Moments found = none ? Moments{} : Sum<T>(tiles, count, stride).run(from);
    call.mean[item] = found.mean;
    call.variance[item] = none ? 0.0 : found.squares / found.count;
  }
}

template <typename T>
class Scale {
 public:
  explicit Scale(const NormScale& call) : call_(call) {}

  void run(int64_t first, int64_t last) {
    const NormTiles& tiles = call_.tiles;
    const int64_t count[4] = {1, tiles.extent[0], tiles.extent[1], tiles.extent[2]};
    const int64_t stride[4] = {0, tiles.stride[0], tiles.stride[1], tiles.stride[2]};
    const Rows rows = rows_of(count, stride);
    const int64_t positions = count[1] * count[2] * count[3];
    Counter<5> place = items_of(tiles);
    place.seek(first);
    for (int64_t item = first; item < last; ++item, place.next()) {
      const int64_t statistics = call_.shared ? item % (tiles.batch * tiles.groups) : item;
      const Group group{statistics, place.at[4] * tiles.depth, positions};
      T* to = reinterpret_cast<T*>(call_.out) + item * tiles.depth * positions;
      if (rows.step == 1) {
        write(rows, group_at<T>(tiles, place.at), to, group);
      } else {
        collect(rows, group_at<T>(tiles, place.at), to, group);
      }
    }
  }

 private:
  using Number = Accumulator<T>;

  /// An item: where its statistics are, its first channel, and its elements in each.
  struct Group {
    int64_t statistics, channel, positions;
  };

  Scaling<Number> scaling(const Group& group, int64_t c) const {
    const double mean = call_.mean[group.statistics];
    const double factor = call_.scale[group.statistics] * parameter(call_.weight, group.channel + c, 1.0);
    const Number centre = static_cast<Number>(mean);
    const double lacking = mean - static_cast<double>(centre);
    return {centre, static_cast<Number>(factor),
            static_cast<Number>(parameter(call_.bias, group.channel + c, 0.0) - lacking * factor)};
  }

  static double parameter(const void* elements, int64_t channel, double otherwise) {
    return elements ? static_cast<double>(to_number(static_cast<const T*>(elements)[channel])) : otherwise;
  }

  void write(const Rows& rows, const T* from, T* to, const Group& group) {
    for (int64_t c = 0; c < call_.tiles.depth; ++c, from += call_.tiles.channel_stride) {
      const Scaling<Number> by = scaling(group, c);
      for_each_row(rows, from, [&](const T* row) {
        scale_row(row, to, rows.length, by);
        to += rows.length;
      });
    }
  }

  /// The same of elements that are not adjacent: a few at a time for all channels, which may lie side by side.
  void collect(const Rows& rows, const T* from, T* to, const Group& group) {
    for_each_row(rows, from, [&](const T* row) {
      for (int64_t done = 0; done < rows.length; done += kGathered) {
        const int64_t count = rows.length - done < kGathered ? rows.length - done : kGathered;
        for (int64_t c = 0; c < call_.tiles.depth; ++c) {
          const T* at = row + c * call_.tiles.channel_stride + done * rows.step;
          gather(at, rows.step, gathered_, count);
          scale_row(gathered_, to + c * group.positions + done, count, scaling(group, c));
        }
      }
      to += rows.length;
    });
  }

  const NormScale call_;
  alignas(64) T gathered_[kGathered];
};

}  // namespace

void norm_moments(const NormMoments& call, int64_t first, int64_t last) {
  switch (call.tiles.type) {
    case ElementType::float16:
      return measure<Half>(call, first, last);
    case ElementType::bfloat16:
      return measure<Brain>(call, first, last);
    case ElementType::float32:
      return measure<float>(call, first, last);
    case ElementType::float64:
      return measure<double>(call, first, last);
  }
}

void norm_scale(const NormScale& call, int64_t first, int64_t last) {
  switch (call.tiles.type) {
    case ElementType::float16:
      return Scale<Half>(call).run(first, last);
    case ElementType::bfloat16:
      return Scale<Brain>(call).run(first, last);
    case ElementType::float32:
      return Scale<float>(call).run(first, last);
    case ElementType::float64:
      return Scale<double>(call).run(first, last);
  }
}

}  // namespace tiledattn::TILEDATTN_ISA
