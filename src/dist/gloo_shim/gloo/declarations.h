// Declarations of the few Gloo names that c10d/ProcessGroupGloo.hpp mentions: the wheel has Gloo's code inside
// libtorch_cpu.so but not its headers. Every Gloo object is made inside that library; here they are only pointed to.
// Deleted constructors and undefined destructors turn any other use into a compile or link error.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace gloo {

class Context {
 public:
  Context() = delete;
  void setTimeout(std::chrono::milliseconds timeout);
};

namespace transport {
class Device;
class UnboundBuffer {
 public:
  UnboundBuffer() = delete;
  virtual ~UnboundBuffer();
};
}  // namespace transport

namespace rendezvous {
class Store {  // base of ProcessGroupGloo::GlooStore, which nothing here instantiates
 public:
  virtual ~Store();
  virtual void set(const std::string& key, const std::vector<char>& value) = 0;
  virtual std::vector<char> get(const std::string& key) = 0;
  virtual void wait(const std::vector<std::string>& keys) = 0;
  virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) = 0;
};
}  // namespace rendezvous

}  // namespace gloo
