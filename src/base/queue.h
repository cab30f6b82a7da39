// Bounded blocking queue between a producer and a consumer thread, with close() and exception hand-over.
#pragma once
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <utility>

namespace fewstep {

template <class T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // Waits for room. False when the queue was closed: the producer should stop.
  bool push(T value) {
    std::unique_lock lock(mutex_);
    can_push_.wait(lock, [&] { return closed_ || items_.size() < capacity_; });
    if (closed_) return false;
    items_.push_back(std::move(value));
    can_pop_.notify_one();
    return true;
  }

  // Waits for an item. Rethrows the producer's exception once the items before it are consumed; nullopt when closed.
  std::optional<T> pop() {
    std::unique_lock lock(mutex_);
    can_pop_.wait(lock, [&] { return closed_ || error_ || !items_.empty(); });
    if (!items_.empty()) {
      T value = std::move(items_.front());
      items_.pop_front();
      can_push_.notify_one();
      return value;
    }
    if (error_) std::rethrow_exception(error_);
    return std::nullopt;
  }

  void close() {
    std::lock_guard lock(mutex_);
    closed_ = true;
    can_push_.notify_all();
    can_pop_.notify_all();
  }

  void fail(std::exception_ptr error) {
    std::lock_guard lock(mutex_);
    error_ = std::move(error);
    can_pop_.notify_all();
  }

  size_t size() const {
    std::lock_guard lock(mutex_);
    return items_.size();
  }

 private:
  const size_t capacity_;
  mutable std::mutex mutex_;
  std::condition_variable can_push_, can_pop_;
  std::deque<T> items_;
  std::exception_ptr error_;
  bool closed_ = false;
};

}  // namespace fewstep
