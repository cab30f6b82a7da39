#include "src/dist/group_world.h"

#include <c10/util/Logging.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/text.h"
#include "src/dist/gloo_backend.h"
#include "src/dist/internal.h"
#include "src/tensor/ops.h"

namespace fewstep::dist {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using Tensors = std::vector<Tensor>;

// How long a rank whose collective failed looks for the reason before it reports without one.
constexpr milliseconds kLookForReason{2000};
constexpr const char* kFailure = "failure";

std::string identity_key(int rank) { return fmt::format("identity/{}", rank); }

std::string seen_key(int rank) { return fmt::format("seen/{}", rank); }

// When process `pid` started, in clock ticks since boot; "" when it is gone or a zombie.
std::string start_of(int pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const size_t name_end = text.rfind(')');  // the name in field 2 may hold anything, ')' and spaces included
  if (name_end == std::string::npos) return "";
  const auto fields = split(trim(std::string_view(text).substr(name_end + 1)), ' ');  // from field 3, the state
  if (fields.size() < 20 || fields[0] == "Z" || fields[0] == "X") return "";
  return fields[19];
}

bool alive(int pid, const std::string& started) { return start_of(pid) == started; }

std::string death_of(int rank) {
  return fmt::format("rank {} died: its process ended without a message (killed, out of memory, or crashed)", rank);
}

std::string this_host() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

// c10 errors carry a C++ stack after the first line.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

bool says_timeout(std::string what) {
  what = to_lower(what);
  return what.find("timed out") != std::string::npos || what.find("timeout") != std::string::npos;
}

}  // namespace

std::unique_ptr<World> make_group_world(const Place& place, at::Device device, double timeout_seconds) {
  return std::make_unique<GroupWorld>(place, device, timeout_seconds);
}

std::shared_ptr<void> serve_store(int& port) {
  c10d::TCPStoreOptions options;
  options.port = 0;  // the kernel chooses a free one: no race between finding a port and using it
  options.isServer = true;
  options.waitWorkers = false;
  auto store = c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
  port = store->getPort();
  return std::make_shared<decltype(store)>(std::move(store));
}

GroupWorld::GroupWorld(const Place& place, at::Device device, double timeout_seconds)
    : timeout_(static_cast<int64_t>(std::ceil(timeout_seconds * 1000))), exceptions_(std::uncaught_exceptions()) {
  rank_ = place.rank;
  size_ = place.size;
  local_rank_ = place.local_rank;
  device_ = device;
  // c10d's warnings about lost connections repeat, with stacks, what our one error line says: errors only.
  if (!process_environment("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = 2;
  if (place.local_size == place.size) setenv("GLOO_SOCKET_IFNAME", "lo", /*overwrite=*/0);
  connect(place);
  communicate("forming the process group", [&] {
    make_group();
    exchange_identities();
  });
}

void GroupWorld::connect(const Place& place) {
  address_ = fmt::format("{}:{}", place.address, place.port);
  serves_store_ = !place.agent_store && place.rank == 0;
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(place.port);
  options.isServer = serves_store_;
  options.waitWorkers = false;
  options.timeout = timeout_;
  try {
    auto tcp = c10::make_intrusive<c10d::TCPStore>(place.address, options);
    options.isServer = false;
    auto news = c10::make_intrusive<c10d::TCPStore>(place.address, options);
    // A prefix per attempt: torchrun's store may still hold what a failed attempt wrote.
    const std::string prefix = fmt::format("fewstep/{}", place.restart);
    store_ = c10::make_intrusive<c10d::PrefixStore>(prefix, tcp);
    news_ = c10::make_intrusive<c10d::PrefixStore>(prefix, news);
  } catch (const std::exception& e) {
    if (serves_store_)
      fail<DistributedError>("rank 0 cannot listen on {}: {} (set MASTER_PORT to a free port)", address_,
                             first_line(e.what()));
    fail<DistributedError>(
        "rank {} cannot reach rank 0 at {} within {:.3g} s: {} (is rank 0 running, and does MASTER_ADDR "
        "name its host?)",
        rank_, address_, static_cast<double>(timeout_.count()) / 1000, first_line(e.what()));
  }
  news_->setTimeout(kLookForReason);
}

void GroupWorld::make_group() {
  using Type = c10d::ProcessGroup::BackendType;
  group_ = c10::make_intrusive<c10d::ProcessGroup>(store_, rank_, size_);
  const auto prefixed = [&](const char* name) { return c10::make_intrusive<c10d::PrefixStore>(name, store_); };
  group_->setBackend(c10::DeviceType::CPU, Type::GLOO, make_gloo_backend(prefixed("gloo"), rank_, size_, timeout_));
  group_->setDefaultBackend(Type::GLOO);
#ifdef FEWSTEP_WITH_CUDA
  if (device_.is_cuda()) {
    group_->setBackend(c10::DeviceType::CUDA, Type::NCCL,
                       make_nccl_backend(prefixed("nccl"), rank_, size_, device_.index(), timeout_));
    group_->setDefaultBackend(Type::NCCL);
  }
#endif
  group_->setGroupName("fewstep");
}

// Each rank's host and process, so that the survivors of a death can say whose it was.
void GroupWorld::exchange_identities() {
  const std::string host = this_host();
  store_->set(identity_key(rank_), fmt::format("{} {} {}", host, getpid(), start_of(getpid())));
  barrier();
  std::vector<std::string> keys;
  for (int r = 0; r < size_; ++r) keys.push_back(identity_key(r));
  const auto values = store_->multiGet(keys);
  for (int r = 0; r < size_; ++r) {
    const auto parts = split(std::string(values[r].begin(), values[r].end()), ' ');
    if (r != rank_ && parts.size() == 3 && parts[0] == host) peers_.push_back({r, std::stoi(parts[1]), parts[2]});
  }
}

GroupWorld::~GroupWorld() {
  const bool unwinding = std::uncaught_exceptions() > exceptions_;
  if (unwinding && !failed_) announce_failure("an exception ended it");
  if (failed_) {
    // Destroying the group joins threads that may wait for a dead rank; the process is about to end anyway.
    (void)group_.release();
    return;
  }
  try {
    barrier();  // nobody closes connections, nor rank 0 its store, while another still uses them
  } catch (const std::exception& e) {
    log::error("{}", e.what());
    (void)group_.release();
  }
}

void GroupWorld::communicate(const char* operation, const std::function<void()>& body) {
  ++operations_;
  try {
    body();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    explain(operation, e.what());
  }
}

void GroupWorld::communicate_within(const char* operation, const std::function<void()>& body) {
  ++operations_;
  try {
    body();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    // Gloo's messages start with its source file; c10d's and NCCL's have a type of their own.
    const std::string what = e.what();
    const bool communication = dynamic_cast<const c10::DistError*>(&e) || what.find("gloo/") != std::string::npos ||
                               what.find("Connection closed by peer") != std::string::npos;
    if (!communication) throw;
    explain(operation, what);
  }
}

void GroupWorld::reduce(Tensor& t, bool maximum) {
  if (t.numel() == 0) return;
  communicate(maximum ? "all_reduce_max" : "all_reduce_sum", [&] {
    const at::NoGradGuard no_grad;
    Tensors buffers{t.detach().contiguous()};
    c10d::AllreduceOptions options;
    if (maximum) options.reduceOp = c10d::ReduceOp::MAX;
    group_->allreduce(buffers, options)->wait();
    if (buffers[0].data_ptr() != t.data_ptr()) t.detach().copy_(buffers[0]);
  });
}

void GroupWorld::all_reduce_sum(Tensor& t) { reduce(t, false); }

void GroupWorld::all_reduce_max(Tensor& t) { reduce(t, true); }

void GroupWorld::broadcast(Tensor& t, int root) {
  FEW_CHECK(root >= 0 && root < size_, "broadcast from rank {} in a world of {}", root, size_);
  if (t.numel() == 0) return;
  communicate("broadcast", [&] {
    const at::NoGradGuard no_grad;
    Tensors buffers{t.detach().contiguous()};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    group_->broadcast(buffers, options)->wait();
    if (buffers[0].data_ptr() != t.data_ptr()) t.detach().copy_(buffers[0]);
  });
}

Tensors GroupWorld::all_gather(const Tensor& t) {
  const at::NoGradGuard no_grad;
  Tensors inputs{t.detach().contiguous()};
  std::vector<Tensors> outputs(1);
  for (int r = 0; r < size_; ++r) outputs[0].push_back(at::empty_like(inputs[0]));
  if (t.numel() > 0) communicate("all_gather", [&] { group_->allgather(outputs, inputs)->wait(); });
  return outputs[0];
}

void GroupWorld::barrier() {
  // On the CPU also beside NCCL: a host-side wait with a host-side error.
  communicate("barrier", [&] {
    Tensors token{at::zeros({1})};
    group_->allreduce(token)->wait();
  });
}

// --- failures

void GroupWorld::announce_failure(std::string_view message) {
  write_error_file(message);
  if (failed_) return;  // this rank only repeats what it learnt from another
  failed_ = true;
  try {
    claim(fmt::format("rank {} failed: {}", rank_, first_line(std::string(message))));
    serve_last_news();
  } catch (const std::exception&) {  // the store is gone: the others have noticed
  }
}

// The store ends with the process that serves it: this one closes its connections, so that the others look for a reason
// now, and waits until the living have read it.
void GroupWorld::serve_last_news() {
  if (!serves_store_) return;
  // Apart, because the group's destructor waits for collectives in flight.
  std::thread([group = std::move(group_)]() mutable { group.reset(); }).detach();
  const auto deadline = steady_clock::now() + kLookForReason;
  const auto waits = [&](int rank) {
    if (rank == rank_ || news_->check({seen_key(rank)})) return false;
    return std::none_of(peers_.begin(), peers_.end(),
                        [&](const Peer& p) { return p.rank == rank && !alive(p.pid, p.started); });
  };
  for (int rank = 0; rank < size_; ++rank)
    while (steady_clock::now() < deadline && waits(rank)) std::this_thread::sleep_for(milliseconds(20));
}

// The first to claim the failure is believed: later ones are its consequences.
void GroupWorld::claim(const std::string& reason) { news_->compareSet(kFailure, "", reason); }

std::string GroupWorld::claimed() {
  if (!news_->check({kFailure})) return "";
  std::string text = news_->get_to_str(kFailure);
  news_->set(seen_key(rank_), "1");
  return text;
}

int GroupWorld::dead_peer() const {
  for (const Peer& peer : peers_)
    if (!alive(peer.pid, peer.started)) return peer.rank;
  return -1;
}

// Ranks that did not report that they too waited for the collective that timed out here.
std::string GroupWorld::missing_ranks() {
  std::string missing;
  for (int r = 0; r < size_; ++r)
    if (!news_->check({fmt::format("waiting/{}/{}", operations_, r)}))
      missing += fmt::format("{}{}", missing.empty() ? "" : ", ", r);
  return missing;
}

std::string GroupWorld::culprit(const char* operation, bool timed_out) {
  if (timed_out) news_->set(fmt::format("waiting/{}/{}", operations_, rank_), "1");
  const auto deadline = steady_clock::now() + kLookForReason;
  while (true) {
    if (auto text = claimed(); !text.empty()) return text;
    const int dead = dead_peer();
    if (dead >= 0) claim(death_of(dead));
    if (steady_clock::now() >= deadline) break;
    if (dead < 0) std::this_thread::sleep_for(milliseconds(50));
  }
  if (!timed_out) return "";
  const std::string missing = missing_ranks();
  if (missing.empty()) return "";
  claim(fmt::format("rank {} did not take part in {} (it hangs, or is too slow: FEWSTEP_DIST_TIMEOUT sets the limit)",
                    missing, operation));
  return claimed();
}

void GroupWorld::explain(const char* operation, const std::string& what) {
  const bool timed_out = says_timeout(what);
  std::string reason;
  try {
    reason = culprit(operation, timed_out);
    serve_last_news();
  } catch (const std::exception&) {
    const int dead = dead_peer();
    reason =
        dead >= 0 ? death_of(dead) : fmt::format("the store at {} is gone (did rank 0 or the launcher die?)", address_);
  }
  failed_ = true;
  if (timed_out && (reason.empty() || reason.find("did not take part") != std::string::npos))
    fail<DistributedError>("{} on rank {} timed out after {:.3g} s: {}", operation, rank_,
                           static_cast<double>(timeout_.count()) / 1000, reason.empty() ? "a rank hangs" : reason);
  if (!reason.empty()) fail<DistributedError>("{}; seen by rank {} in {}", reason, rank_, operation);
  fail<DistributedError>("{} failed on rank {}: a connection was closed (did a rank on another host die?): {}",
                         operation, rank_, first_line(what));
}

}  // namespace fewstep::dist
