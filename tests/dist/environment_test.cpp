#include "src/dist/environment.h"

#include <gmock/gmock.h>

#include <map>

#include "src/base/error.h"

namespace fewstep::dist {
namespace {

using Variables = std::map<std::string, std::string>;
using ::testing::HasSubstr;

Lookup lookup(const Variables& variables) {
  return [variables](const char* name) -> std::optional<std::string> {
    const auto it = variables.find(name);
    if (it == variables.end()) return std::nullopt;
    return it->second;
  };
}

constexpr int kParent = 4321;
Place place(const Variables& variables) { return find_place(lookup(variables), kParent); }

Variables torchrun(const Variables& changes = {}) {
  Variables v = {{"RANK", "3"},
                 {"WORLD_SIZE", "8"},
                 {"LOCAL_RANK", "1"},
                 {"LOCAL_WORLD_SIZE", "2"},
                 {"MASTER_ADDR", "node7"},
                 {"MASTER_PORT", "29501"}};
  for (const auto& [name, value] : changes) {
    v.erase(name);
    if (value != "unset") v[name] = value;
  }
  return v;
}

TEST(Environment, NothingSetIsOneProcess) {
  const Place p = place({});
  EXPECT_EQ(p.size, 1);
  EXPECT_EQ(p.rank, 0);
  EXPECT_EQ(p.launcher, "");
}

TEST(Environment, Torchrun) {
  const Place p = place(torchrun({{"TORCHELASTIC_USE_AGENT_STORE", "True"}, {"TORCHELASTIC_RESTART_COUNT", "2"}}));
  EXPECT_EQ(p.rank, 3);
  EXPECT_EQ(p.size, 8);
  EXPECT_EQ(p.local_rank, 1);
  EXPECT_EQ(p.local_size, 2);
  EXPECT_EQ(p.restart, 2);
  EXPECT_EQ(p.address, "node7");
  EXPECT_EQ(p.port, 29501);
  EXPECT_TRUE(p.agent_store);
  EXPECT_FALSE(place(torchrun()).agent_store);
}

TEST(Environment, LocalRankFollowsRankOnThisHost) {
  const Place p =
      place(torchrun({{"LOCAL_RANK", "unset"}, {"LOCAL_WORLD_SIZE", "unset"}, {"MASTER_ADDR", "127.0.0.1"}}));
  EXPECT_EQ(p.local_rank, 3);
}

TEST(Environment, SlurmStep) {
  const Place p = place({{"SLURM_PROCID", "5"},
                         {"SLURM_NTASKS", "8"},
                         {"SLURM_LOCALID", "1"},
                         {"SLURM_JOB_ID", "123456"},
                         {"SLURM_JOB_NODELIST", "gpu[01-04,07]"}});
  EXPECT_EQ(p.launcher, "SLURM");
  EXPECT_EQ(p.rank, 5);
  EXPECT_EQ(p.size, 8);
  EXPECT_EQ(p.local_rank, 1);
  EXPECT_EQ(p.address, "gpu01");
  EXPECT_EQ(p.port, 10000 + 123456 % 20000);
  EXPECT_FALSE(p.agent_store);
}

TEST(Environment, SlurmStepSizeGoesBeforeTheJobs) {
  // A step of one task inside an allocation of eight: srun -n1 --pty bash, then a plain run in that shell.
  EXPECT_EQ(place({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_STEP_NUM_TASKS", "1"}}).size, 1);
}

TEST(Environment, PlainRunsInsideSlurmAreOneProcess) {
  EXPECT_EQ(place({{"SLURM_JOB_ID", "1"}, {"SLURM_NTASKS", "4"}, {"SLURM_JOB_NODELIST", "a[1-2]"}}).size, 1);  // salloc
  EXPECT_EQ(place({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "4"}, {"ENVIRONMENT", "BATCH"}}).size, 1);          // sbatch
  EXPECT_EQ(place({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}}).size, 1);
}

TEST(Environment, FirstHostOfANodeList) {
  EXPECT_EQ(first_host("node[01-04,07]"), "node01");
  EXPECT_EQ(first_host("node[7,9-12]"), "node7");
  EXPECT_EQ(first_host("alpha,beta"), "alpha");
  EXPECT_EQ(first_host("alpha"), "alpha");
  EXPECT_EQ(first_host("login,node[1-3]"), "login");
  EXPECT_EQ(first_host("node[1-3],login"), "node1");
  EXPECT_EQ(first_host("r[1-2]n[03-09]"), "r1n03");
  EXPECT_EQ(first_host("r[1-2]-ib"), "r1-ib");
  EXPECT_THROW(first_host("node[01"), ConfigError);
  EXPECT_THROW(first_host("node[]"), ConfigError);
}

TEST(Environment, MpiOnOneHostNeedsNoAddress) {
  const Variables ompi = {{"OMPI_COMM_WORLD_RANK", "1"},
                          {"OMPI_COMM_WORLD_SIZE", "2"},
                          {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                          {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}};
  const Place p = place(ompi);
  EXPECT_EQ(p.launcher, "OpenMPI");
  EXPECT_EQ(p.rank, 1);
  EXPECT_EQ(p.local_rank, 1);
  EXPECT_EQ(p.address, "127.0.0.1");
  EXPECT_EQ(p.port, 10000 + kParent);  // the same for all children of one mpirun
  EXPECT_EQ(place({{"MV2_COMM_WORLD_RANK", "0"},
                   {"MV2_COMM_WORLD_SIZE", "2"},
                   {"MV2_COMM_WORLD_LOCAL_RANK", "0"},
                   {"MV2_COMM_WORLD_LOCAL_SIZE", "2"}})
                .launcher,
            "MVAPICH");
  const Place pmi = place({{"PMI_RANK", "1"},
                           {"PMI_SIZE", "4"},
                           {"MPI_LOCALRANKID", "1"},
                           {"MPI_LOCALNRANKS", "2"},
                           {"MASTER_ADDR", "a"},
                           {"MASTER_PORT", "5000"}});
  EXPECT_EQ(pmi.launcher, "PMI");
  EXPECT_EQ(pmi.address, "a");
  EXPECT_EQ(pmi.local_size, 2);
}

TEST(Environment, TheInnermostLauncherCounts) {
  Variables v = torchrun({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "2"}, {"OMPI_COMM_WORLD_RANK", "0"}});
  EXPECT_EQ(place(v).launcher, "torchrun");
  EXPECT_EQ(place({{"PMI_RANK", "1"},
                   {"PMI_SIZE", "2"},
                   {"SLURM_PROCID", "1"},
                   {"SLURM_STEP_NUM_TASKS", "2"},
                   {"SLURM_LOCALID", "0"},
                   {"SLURM_STEP_NODELIST", "b,c"}})
                .launcher,
            "SLURM");  // srun --mpi=pmi2
}

struct Bad {
  Variables variables;
  std::string names;  // what the message must contain
};

class BadEnvironment : public ::testing::TestWithParam<Bad> {};

TEST_P(BadEnvironment, NamesTheVariable) {
  try {
    place(GetParam().variables);
    FAIL() << "accepted; expected an error naming " << GetParam().names;
  } catch (const ConfigError& e) {
    EXPECT_THAT(e.what(), HasSubstr(GetParam().names));
    EXPECT_EQ(e.exit_code(), 2);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadEnvironment,
    ::testing::Values(
        Bad{torchrun({{"RANK", "8"}}), "RANK=8 must be below WORLD_SIZE=8"}, Bad{torchrun({{"RANK", "-1"}}), "RANK=-1"},
        Bad{torchrun({{"RANK", "two"}}), "RANK='two' is not a whole number"},
        Bad{torchrun({{"RANK", "1.5"}}), "RANK='1.5' is not a whole number"},
        Bad{torchrun({{"RANK", "99999999999999999999"}}), "RANK="},
        Bad{torchrun({{"RANK", "unset"}}), "RANK is not set"},
        Bad{torchrun({{"WORLD_SIZE", "unset"}}), "WORLD_SIZE is not set"},
        Bad{torchrun({{"WORLD_SIZE", "0"}}), "WORLD_SIZE=0"},
        Bad{torchrun({{"MASTER_ADDR", "unset"}}), "MASTER_ADDR is not set"},
        Bad{torchrun({{"MASTER_PORT", "unset"}}), "MASTER_PORT is not set"},
        Bad{torchrun({{"MASTER_PORT", "70000"}}), "MASTER_PORT=70000"},
        Bad{torchrun({{"MASTER_PORT", "http"}}), "MASTER_PORT='http'"},
        Bad{torchrun({{"LOCAL_RANK", "2"}}), "LOCAL_RANK=2 must be below LOCAL_WORLD_SIZE=2"},
        Bad{torchrun({{"LOCAL_RANK", "x"}}), "LOCAL_RANK='x'"},
        Bad{torchrun({{"LOCAL_RANK", "unset"}}), "LOCAL_RANK is not set"},
        Bad{torchrun({{"LOCAL_WORLD_SIZE", "9"}}), "LOCAL_WORLD_SIZE=9"},
        Bad{{{"OMPI_COMM_WORLD_RANK", "0"}}, "OMPI_COMM_WORLD_SIZE is not set"},
        Bad{{{"OMPI_COMM_WORLD_RANK", "0"},
             {"OMPI_COMM_WORLD_SIZE", "4"},
             {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
             {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}},
            "MASTER_ADDR is not set"},
        Bad{{{"SLURM_PROCID", "4"}, {"SLURM_NTASKS", "4"}, {"SLURM_LOCALID", "0"}}, "SLURM_PROCID=4 must be below"},
        Bad{{{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "4"}, {"SLURM_LOCALID", "0"}}, "SLURM_JOB_NODELIST"}));

TEST(Environment, Timeout) {
  EXPECT_EQ(timeout_from(lookup({}), 600), 600);
  EXPECT_EQ(timeout_from(lookup({{"FEWSTEP_DIST_TIMEOUT", "2.5"}}), 600), 2.5);
  for (const char* bad : {"soon", "0", "-3", "nan", "5s", ""})
    EXPECT_THROW(timeout_from(lookup({{"FEWSTEP_DIST_TIMEOUT", bad}}), 600), ConfigError) << bad;
}

}  // namespace
}  // namespace fewstep::dist
