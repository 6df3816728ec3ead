// Moments of rows of elements, and rows scaled. Internal to each source of csrc/cpu.
#pragma once

#include <type_traits>

#include "cpu/doubles.h"
#include "cpu/elements.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int kSums = 4;  // vectors that are summed up beside one another

/// What an element's sums are kept in: a vector of floats, of doubles for doubles.
template <typename T>
using Lanes = std::conditional_t<std::is_same_v<T, double>, Doubles, Vec>;

/// `count` rows of `length` adjacent elements each.
template <typename T>
struct RowList {
  const T* const* rows;
  int64_t count, length;
};

/// Number, mean, and sum of squares about the mean, of numbers that come a few thousand at a time.
struct Moments {
  double count = 0.0, mean = 0.0, squares = 0.0;

  void add(double more, double its_mean, double its_squares) {
    const double all = count + more, apart = its_mean - mean;
    squares += its_squares + apart * apart * (count * more / all);
    mean += apart * (more / all);
    count = all;
  }
};

/// Calls whole(k, vector) for the elements of the rows, and part(k, vector) for what is left of a row, zeros behind it;
/// k says which of kSums to add them to.
template <typename T, typename Whole, typename Part>
inline void for_each_vector(const RowList<T>& list, const Whole& whole, const Part& part) {
  constexpr int kWidth = Lanes<T>::width;
  int64_t row = 0;
  for (; row + kSums <= list.count; row += kSums) {
    const T* const* from = list.rows + row;
    int64_t i = 0;
    for (; i + kWidth <= list.length; i += kWidth) {
      for (int k = 0; k < kSums; ++k) whole(k, load_numbers(from[k] + i));
    }
    for (int k = 0; k < kSums && i < list.length; ++k) part(k, load_numbers(from[k] + i, list.length - i));
  }
  for (; row < list.count; ++row) {
    const T* from = list.rows[row];
    int64_t i = 0;
    for (; i + kSums * kWidth <= list.length; i += kSums * kWidth) {
      for (int k = 0; k < kSums; ++k) whole(k, load_numbers(from + i + k * kWidth));
    }
    for (; i + kWidth <= list.length; i += kWidth) whole(0, load_numbers(from + i));
    if (i < list.length) part(1, load_numbers(from + i, list.length - i));
  }
}

/// Halves are added to halves.
template <int kCount, typename Number>
inline double sum_of(const Number* numbers) {
  if constexpr (kCount == 1) {
    return static_cast<double>(*numbers);
  } else {
    return sum_of<kCount / 2>(numbers) + sum_of<kCount / 2>(numbers + kCount / 2);
  }
}

template <typename L>
inline double sum_of(const L (&sums)[kSums]) {
  std::conditional_t<std::is_same_v<L, Vec>, float, double> numbers[L::width];
  store(numbers, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  return sum_of<L::width>(numbers);
}

/// Adds elements that are in the first-level cache: about a mean which is nearly theirs, so that large ones don't
/// cancel.
template <typename T>
inline void add_rows(Moments& moments, const RowList<T>& list) {
  using L = Lanes<T>;
  using Number = Accumulator<T>;
  const double count = static_cast<double>(list.count * list.length);
  L sums[kSums] = {L::zero(), L::zero(), L::zero(), L::zero()};
  const auto add = [&](int k, L x) { sums[k] = sums[k] + x; };
  for_each_vector(list, add, add);
  const Number centre = static_cast<Number>(sum_of(sums) / count);

  Number ones[L::width] = {};
  for (int64_t i = 0; i < list.length % L::width; ++i) ones[i] = Number{1};
  const L left = load_numbers(ones), middle = L::all(centre);
  L first[kSums] = {L::zero(), L::zero(), L::zero(), L::zero()};
  L second[kSums] = {L::zero(), L::zero(), L::zero(), L::zero()};
  const auto add_apart = [&](int k, L apart) {
    first[k] = first[k] + apart;
    second[k] = fma(apart, apart, second[k]);
  };
  for_each_vector(
      list, [&](int k, L x) { add_apart(k, x - middle); }, [&](int k, L x) { add_apart(k, (x - middle) * left); });
  const double sum = sum_of(first), shift = sum / count;
  moments.add(count, static_cast<double>(centre) + shift, sum_of(second) - sum * shift);
}

/// What a channel's numbers become: (x - centre) * factor + shift. What `centre` lacks of the mean is in `shift`.
template <typename Number>
struct Scaling {
  Number centre, factor, shift;
};

template <typename T>
inline void scale_row(const T* from, T* to, int64_t count, const Scaling<Accumulator<T>>& by) {
  using L = Lanes<T>;
  const L centre = L::all(by.centre), factor = L::all(by.factor), shift = L::all(by.shift);
  const auto scaled = [&](L x) { return fma(x - centre, factor, shift); };
  int64_t i = 0;
  for (; i + kSums * L::width <= count; i += kSums * L::width) {
    L x[kSums];
    for (int k = 0; k < kSums; ++k) x[k] = scaled(load_numbers(from + i + k * L::width));
    for (int k = 0; k < kSums; ++k) put_numbers<false>(to + i + k * L::width, x[k]);
  }
  for (; i + L::width <= count; i += L::width) put_numbers<false>(to + i, scaled(load_numbers(from + i)));
  if (i < count) put_numbers(to + i, scaled(load_numbers(from + i, count - i)), count - i);
}

}  // namespace
}  // namespace tiledattn::TILEDATTN_ISA
