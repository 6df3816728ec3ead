// Values that take longer to make than to look up.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace tiledattn {

/// Values by what they are made from. Holds at most `most`; then it starts anew.
template <typename Value>
class Cache {
 public:
  explicit Cache(size_t most) : most_(most) {}

  /// The value of `key`, made by make(value) where it isn't there yet. Safe from several threads.
  template <typename Make>
  std::shared_ptr<const Value> get(const std::vector<int64_t>& key, const Make& make) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = values_.find(key);
    if (found != values_.end()) return found->second;
    const auto value = std::make_shared<Value>();
    make(*value);
    if (values_.size() >= most_) values_.clear();
    return values_.emplace(key, value).first->second;
  }

 private:
  const size_t most_;
  std::mutex mutex_;
  std::map<std::vector<int64_t>, std::shared_ptr<const Value>> values_;
};

}  // namespace tiledattn
