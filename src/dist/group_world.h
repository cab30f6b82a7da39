// A World with a c10d process group. Only src/dist/*.cpp include this; everyone else sees world.h.
#pragma once
#include <chrono>
#include <functional>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "src/dist/environment.h"
#include "src/dist/world.h"

namespace fewstep::dist {

class GroupWorld : public World {
 public:
  GroupWorld(const Place& place, at::Device device, double timeout_seconds);
  ~GroupWorld() override;

  void all_reduce_sum(Tensor& t) override;
  void all_reduce_max(Tensor& t) override;
  void broadcast(Tensor& t, int root) override;
  std::vector<Tensor> all_gather(const Tensor& t) override;
  void barrier() override;
  void announce_failure(std::string_view message) override;

  const c10::intrusive_ptr<c10d::ProcessGroup>& group() const { return group_; }
  // Runs `body`, whose exceptions come from communication: they leave as DistributedError with the culprit's name.
  void communicate(const char* operation, const std::function<void()>& body);
  // The same for code that computes as well (backward): only exceptions of the communication library are translated.
  void communicate_within(const char* operation, const std::function<void()>& body);

 private:
  struct Peer {  // a process of this group on this host
    int rank = 0, pid = 0;
    std::string started;  // field 22 of /proc/PID/stat: a reused pid has another
  };
  void connect(const Place& place);
  void make_group();
  void exchange_identities();
  void reduce(Tensor& t, bool maximum);
  [[noreturn]] void explain(const char* operation, const std::string& what);
  std::string culprit(const char* operation, bool timed_out);
  std::string missing_ranks();
  int dead_peer() const;
  void claim(const std::string& reason);
  std::string claimed();
  void serve_last_news();

  std::chrono::milliseconds timeout_;
  std::string address_;
  bool serves_store_ = false;
  c10::intrusive_ptr<c10d::Store> store_, news_;  // news_: a connection of its own, free when a collective is stuck
  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  std::vector<Peer> peers_;
  int64_t operations_ = 0;  // collectives begun: tells who did not arrive at one that timed out
  int exceptions_ = 0;      // in flight when made: the destructor sees whether it runs because of a throw
  bool failed_ = false;
};

}  // namespace fewstep::dist
