// The experiment runner: planning, substitution, skipping, failures, aggregation, tables. Jobs are real processes of
// this program (`config check`) or of small shell scripts that stand in for it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/base/text.h"
#include "src/config/config.h"
#include "tests/support/message_of.h"
#include "tools/experiment_tables.h"

namespace fewstep::experiment {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;

template <class F>
std::string config_error(F f) {
  try {
    f();
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "(nothing was thrown)";
}

class Experiment : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("fewstep_experiment_{}_{}", getpid(),
                                                      testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // A program that appends its arguments to calls.txt and does what `body` says.
  fs::path script(const std::string& body) {
    const fs::path path = folder_ / "program";
    write_text_atomic(path, "#!/bin/sh\necho \"$@\" >> '" + (folder_ / "calls.txt").string() + "'\n" + body + "\n");
    fs::permissions(path, fs::perms::owner_all);
    return path;
  }
  std::vector<std::string> calls() const {
    if (!fs::exists(folder_ / "calls.txt")) return {};
    std::vector<std::string> lines = split(read_text(folder_ / "calls.txt"), '\n');
    lines.pop_back();
    return lines;
  }
  ExperimentConfig parse(const std::string& yaml) {
    return config::parse<ExperimentConfig>("name: demo\nout: " + (folder_ / "out").string() + "\n" + yaml);
  }
  fs::path folder_;
};

TEST_F(Experiment, MatrixSeedsAndSubstitutions) {
  const auto c = parse(R"(
shared: [{name: tokens, command: probe, target: shared.yaml}]
rows:
  - label: with warm start
    jobs:
      - {name: first, command: probe, target: a.yaml}
      - {name: second, command: probe, target: "${run:first}/model",
         set: {trainer: {init: "${run:tokens}", start: "${seed}"}}, args: ["--note", "${label}-${seed}"]}
matrix: {second.lr: [1e-3, 1e-4], second.mode: ['a, b', c]}
seeds: [3, 5]
)");
  const Plan plan = make_plan(c);
  ASSERT_EQ(plan.rows.size(), 4u);
  EXPECT_EQ(plan.rows[1].label, "with warm start, lr=1e-3, mode=c");
  ASSERT_EQ(plan.rows[1].runs.size(), 2u);
  const PlannedRun& run = plan.rows[1].runs[1];
  EXPECT_EQ(run.folder, folder_ / "out" / "with-warm-start--lr-1e-3--mode-c" / "seed-5");
  EXPECT_EQ(run.jobs[1].target, (run.folder / "first/model").string());
  EXPECT_THAT(run.jobs[1].overrides, ElementsAre("trainer.init=\"" + (folder_ / "out/shared/tokens").string() + "\"",
                                                 "trainer.start=5", "lr=1e-3", "mode=c"));
  EXPECT_THAT(run.jobs[1].args, ElementsAre("--note", "with warm start, lr=1e-3, mode=c-5"));
  EXPECT_TRUE(run.jobs[0].overrides.empty());
}

TEST_F(Experiment, PlanningMistakesNameThePlaceAndTheKnownNames) {
  const auto plan = [&](const std::string& yaml) { return config_error([&] { make_plan(parse(yaml)); }); };
  EXPECT_THAT(plan("rows: [{label: a, jobs: [{name: x, target: \"${run:y}\"}]}]"),
              HasSubstr("row 'a', job 'x': ${run:y} is not known"));
  EXPECT_THAT(plan("rows: [{label: a, jobs: [{name: x}, {name: x}]}]"), HasSubstr("two jobs are named 'x'"));
  EXPECT_THAT(plan("rows: [{label: a b}, {label: a-b}]"), HasSubstr("two are labelled"));
  EXPECT_THAT(plan("rows: [{label: a, jobs: [{name: x}]}]\nmatrix: {y.lr: [1]}"),
              HasSubstr("must begin with a job of row 'a' (x)"));
  EXPECT_THAT(plan("rows: [{label: a, jobs: [{name: x, folder: same}]}]\nseeds: [1, 2]"),
              HasSubstr("another job writes same"));
  EXPECT_THAT(config_error([&] { parse("rows: [{label: a, job: []}]"); }), HasSubstr("did you mean 'jobs'"));
}

TEST_F(Experiment, FinishedJobsAreSkippedAndChangedOnesRunAgain) {
  const RunOptions options{.program = script("exit 0"), .only = {}};
  const std::string yaml =
      "rows: [{label: a, jobs: [{name: x, command: probe, args: [one]}, {name: y, command: probe two words}]}]";
  EXPECT_TRUE(run_experiment(parse(yaml), options).all_done());
  EXPECT_THAT(calls(), ElementsAre("probe one", "probe two words"));
  run_experiment(parse(yaml), options);
  EXPECT_EQ(calls().size(), 2u);
  // The second job changes: only it runs again. The first changes: what follows in the chain runs again as well.
  run_experiment(
      parse("rows: [{label: a, jobs: [{name: x, command: probe, args: [one]}, {name: y, command: probe three}]}]"),
      options);
  EXPECT_EQ(calls().size(), 3u);
  fs::create_directories(folder_ / "out/a/x");
  run_experiment(
      parse("rows: [{label: a, jobs: [{name: x, command: probe, args: [new]}, {name: y, command: probe three}]}]"),
      options);
  EXPECT_THAT(calls(), testing::SizeIs(5));
  EXPECT_TRUE(fs::exists(folder_ / "out/a/x.old-1"));  // results of the older job are kept apart
}

TEST_F(Experiment, FinishedJobsCanBeKeptWhenOnlyTheirConfigsChanged) {
  RunOptions options{.program = script("exit 0"), .only = {}};
  const auto yaml = [&](const std::string& args) {
    return "rows: [{label: a, jobs: [{name: x, command: probe, target: " + (folder_ / "x.txt").string() + ", args: [" + args + "]}, {name: y, command: probe}]}]";
  };
  write_text_atomic(folder_ / "x.txt", "old");
  fs::create_directories(folder_ / "out/a/x"), fs::create_directories(folder_ / "out/a/y");
  run_experiment(parse(yaml("one")), options);
  write_text_atomic(folder_ / "x.txt", "new");
  options.keep_finished = true;
  EXPECT_TRUE(run_experiment(parse(yaml("one")), options).all_done());
  EXPECT_EQ(calls().size(), 2u);
  options.keep_finished = false;
  EXPECT_TRUE(run_experiment(parse(yaml("one")), options).all_done());  // adopted for good
  EXPECT_EQ(calls().size(), 2u);
  options.keep_finished = true;
  run_experiment(parse(yaml("two")), options);  // another command line is another job, and what follows it is made again
  EXPECT_EQ(calls().size(), 4u);
}

TEST_F(Experiment, AFailedRowDoesNotStopTheOthersAndRunsAgain) {
  const RunOptions options{.program = script("[ \"$2\" = bad ] && exit 4\nexit 0"), .only = {}};
  const std::string yaml =
      "rows: [{label: a, jobs: [{name: x, command: probe, args: [bad]}, {name: after, command: probe}]}, "
      "{label: b, jobs: [{name: x, command: probe, args: [good]}]}]";
  const Outcome outcome = run_experiment(parse(yaml), options);
  EXPECT_FALSE(outcome.all_done());
  EXPECT_EQ(outcome.rows[0].status, Status::failed);
  EXPECT_EQ(outcome.rows[0].detail, "job 'x' ended with exit code 4");
  EXPECT_EQ(outcome.rows[1].status, Status::done);
  EXPECT_THAT(calls(), ElementsAre("probe bad", "probe good"));
  run_experiment(parse(yaml), options);
  EXPECT_THAT(calls(), ElementsAre("probe bad", "probe good", "probe bad"));
}

TEST_F(Experiment, InterruptedJobStopsEverything) {
  const RunOptions options{.program = script("exit 130"), .only = {}};
  EXPECT_THROW(
      run_experiment(
          parse("rows: [{label: a, jobs: [{name: x, command: probe}]}, {label: b, jobs: [{name: x, command: probe}]}]"),
          options),
      Interrupted);
  EXPECT_EQ(calls().size(), 1u);
}

TEST_F(Experiment, OnlyRunsOneRowAndKeepsTheOthersResults) {
  RunOptions options{.program = script("exit 0"), .only = "b"};
  const std::string yaml =
      "rows: [{label: a, jobs: [{name: x, command: probe a}]}, {label: b, jobs: [{name: x, command: probe b}]}]";
  EXPECT_EQ(run_experiment(parse(yaml), options).rows[0].status, Status::waiting);
  EXPECT_THAT(calls(), ElementsAre("probe b"));
  options.only = "a";
  const Outcome outcome = run_experiment(parse(yaml), options);
  EXPECT_EQ(outcome.rows[0].status, Status::done);
  EXPECT_EQ(outcome.rows[1].status, Status::done);  // from before
  options.only = "c";
  EXPECT_THAT(config_error([&] { run_experiment(parse(yaml), options); }), HasSubstr("--only"));
}

TEST_F(Experiment, KilledJobsReportTheSignal) {
  EXPECT_EQ(run_process(script("kill -9 $$"), {}), 128 + 9);
  EXPECT_THROW(run_process(folder_ / "nothing", {}), DataError);
}

TEST_F(Experiment, JobsOfThisProgram) {
  const fs::path good = folder_ / "good.yaml", bad = folder_ / "bad.yaml";
  write_text_atomic(good, "name: inner\nrows: [{label: only}]\n");
  write_text_atomic(bad, "name: inner\nrows: [{label: only, colour: red}]\n");
  const auto c =
      parse(fmt::format("rows: [{{label: good, jobs: [{{name: check, command: config check, target: {}}}]}}, "
                        "{{label: bad, jobs: [{{name: check, command: config check, target: {}}}]}}]",
                        good.string(), bad.string()));
  const Outcome outcome = run_experiment(c, {.program = FEWSTEP_BINARY, .only = {}});
  EXPECT_EQ(outcome.rows[0].status, Status::done) << outcome.rows[0].detail;
  EXPECT_EQ(outcome.rows[1].status, Status::failed);
  EXPECT_EQ(outcome.rows[1].detail, "job 'check' ended with exit code 2");
}

eval::ResultRow measured(double fd, int64_t seed) {
  eval::ResultRow row;
  row.label = "samples";
  row.metrics["FD[judge@1a2b3c4d]"] = {.value = fd, .ci95 = 0.5, .n = 100};
  row.seeds = {seed};
  return row;
}

TEST_F(Experiment, MeanAndIntervalOverSeeds) {
  const auto mean = mean_over_seeds("row", {measured(1, 1), measured(2, 2), measured(3, 3)});
  const eval::Value v = mean.metrics.at("FD[judge@1a2b3c4d]");
  EXPECT_DOUBLE_EQ(v.value, 2);
  EXPECT_NEAR(v.ci95, 4.30265 / std::sqrt(3.0), 1e-4);  // t_2 s / sqrt 3, s = 1
  EXPECT_EQ(v.note, "sampling ± 0.500 a seed");  // apart from what differs between seeds
  EXPECT_EQ(mean.seeds, (std::vector<int64_t>{1, 2, 3}));
  eval::ResultRow slow = measured(1, 1), quick = measured(1, 2);
  slow.steps = 100, quick.steps = 75;
  EXPECT_DOUBLE_EQ(mean_over_seeds("row", {slow, quick}).steps, 87.5);
  EXPECT_EQ(mean_over_seeds("row", {measured(1, 1)}).metrics.at("FD[judge@1a2b3c4d]").ci95, 0.5);
  eval::ResultRow other;
  other.metrics["FD[judge@ffffffff]"] = {.value = 9};  // another encoder's numbers are not averaged in
  EXPECT_TRUE(mean_over_seeds("row", {measured(1, 1), other}).metrics.empty());
}

TEST_F(Experiment, FullRowsSayWhatTheyNeed) {
  write_text_atomic(
      folder_ / "config.json",
      R"({"architectures":["LlamaForCausalLM"],"vocab_size":1000,"hidden_size":64,"intermediate_size":128,)"
      R"("num_hidden_layers":2,)"
      R"("num_attention_heads":4,"max_position_embeddings":128})");
  NeedsConfig needs{.model_config = (folder_ / "config.json").string(),
                    .tokens_per_sample = 100,
                    .batch_size = 10,
                    .gpus = 2,
                    .files = {"/nowhere/coco"},
                    .missing = {"Chameleon loader"}};
  const auto [text, complete] = describe_needs(needs);
  EXPECT_FALSE(complete);
  // embeddings and head 2 x 64,000; a block 4 x 64^2 + 3 x 64 x 128 + 2 x 64; the last norm 64
  const int64_t parameters = 2 * 64000 + 2 * (4 * 4096 + 3 * 8192 + 128) + 64;
  EXPECT_THAT(text, HasSubstr(human_count(static_cast<double>(parameters)) + " parameters"));
  EXPECT_THAT(text, HasSubstr(human_bytes(static_cast<uint64_t>(parameters * 16))));
  EXPECT_THAT(text, HasSubstr("missing: Chameleon loader, /nowhere/coco"));
  const auto c = parse(
      "rows: [{label: big, scale: full, needs: {missing: [weights]}}, {label: small, jobs: [{name: x, command: "
      "probe}]}]");
  const Outcome outcome = run_experiment(c, {.program = script("exit 0"), .only = {}, .scale = Scale::full});
  EXPECT_EQ(outcome.rows[0].status, Status::not_runnable);
  EXPECT_EQ(outcome.rows[1].status, Status::done);
  EXPECT_TRUE(outcome.all_done());
}

TEST_F(Experiment, AFullRowAskedForByNameRunsOrSaysAllItLacks) {
  const std::string yaml =
      "shared: [{name: s, command: probe}]\nrows: [{label: big, scale: full, jobs: [{name: x, command: probe}], needs: "
      "{files: "
      "[/nowhere/weights], missing: [loader, sharding]}}, {label: ready, scale: full, jobs: [{name: x, command: "
      "probe}]}]";
  RunOptions options{.program = script("exit 0"), .only = "big", .scale = Scale::full};
  const std::string lacking = config_error([&] { run_experiment(parse(yaml), options); });
  EXPECT_THAT(lacking, HasSubstr("row 'big' cannot run yet: missing: loader, sharding, /nowhere/weights"));
  options.only = "ready", options.scale = Scale::tiny;
  EXPECT_THAT(config_error([&] { run_experiment(parse(yaml), options); }), HasSubstr("add --scale full"));
  EXPECT_TRUE(calls().empty());  // not even the shared jobs
  options.scale = Scale::full;
  EXPECT_EQ(run_experiment(parse(yaml), options).rows[1].status, Status::done);
  // As a user meets it: exit code 2.
  write_text_atomic(folder_ / "run.yaml", "name: demo\nout: " + (folder_ / "out").string() + "\n" + yaml);
  EXPECT_EQ(run_process(FEWSTEP_BINARY, {"experiment", folder_.string(), "--only", "big", "--scale", "full"}), 2);
}

TEST_F(Experiment, RowsMayHaveTheirOwnMatrixAndSeveralNumbers) {
  const auto c = parse(R"(
shared: [{name: tokens, command: probe}, {name: base, command: eval, target: e.yaml}]
rows:
  - {label: grid, jobs: [{name: x, command: probe}]}
  - {label: line, jobs: [{name: x, command: probe}], matrix: {x.a: [3]}}
  - {label: base, results_of: base, matrix: {}}
matrix: {x.a: [1, 2]}
)");
  EXPECT_THAT(config_error([&] { make_plan(c); }),
              HasSubstr("must begin with a job of row 'base'"));  // an empty matrix is none
  const auto d = parse(R"(
shared: [{name: tokens, command: probe}, {name: base, command: eval, target: e.yaml}]
rows:
  - {label: arm, each_eval: true, jobs: [{name: fit, command: probe}, {name: exact, command: eval}, {name: fast, command: eval}]}
  - {label: line, jobs: [{name: x, command: probe}], matrix: {x.a: [3, 4]}}
  - {label: base, results_of: base}
)");
  const Plan plan = make_plan(d);
  ASSERT_EQ(plan.rows.size(), 5u);
  EXPECT_EQ(plan.rows[0].label, "arm; exact");
  EXPECT_EQ(plan.rows[1].measured_job, "fast");
  EXPECT_EQ(plan.rows[0].runs[0].folder, plan.rows[1].runs[0].folder);  // one chain, one fit
  EXPECT_EQ(plan.rows[3].label, "line, a=4");
  EXPECT_EQ(plan.rows[4].results, folder_ / "out/shared/base");
  EXPECT_THAT(config_error([&] { make_plan(parse("rows: [{label: a, results_of: b}]")); }),
              HasSubstr("no shared eval job"));
  EXPECT_THAT(config_error([&] { make_plan(parse("rows: [{label: a, each_eval: true, jobs: [{name: x}]}]")); }),
              HasSubstr("no job is an eval"));
}

TEST_F(Experiment, ExperimentsThatShareATrainingRunItOnce) {
  const RunOptions options{.program = script("exit 0"), .only = {}};
  const std::string common =
      "rows: [{label: a, jobs: [{name: t, command: probe, folder: " + (folder_ / "models/t").string() + "}]}]";
  fs::create_directories(folder_ / "models/t");
  run_experiment(parse(common), options);
  auto other = parse(common);
  other.out = (folder_ / "elsewhere").string();
  EXPECT_EQ(run_experiment(other, options).rows[0].status, Status::done);
  EXPECT_THAT(calls(), ElementsAre("probe"));
}

// Every experiment of the tree reads, with all configs its jobs name: a key renamed elsewhere shows here.
TEST(Tree, ExperimentsAndTheirConfigsAreValid) {
  const fs::path before = fs::current_path();
  fs::current_path(FEWSTEP_SOURCE_DIR);
  int count = 0;
  for (const auto& entry : fs::directory_iterator("experiments")) {
    SCOPED_TRACE(entry.path().string());
    EXPECT_TRUE(fs::exists(entry.path() / "README.md"));
    const Plan plan = make_plan(config::load<ExperimentConfig>(entry.path() / "run.yaml"));
    EXPECT_NO_THROW(check_configs(plan));
    for (const PlannedRow& row : plan.rows) EXPECT_NO_THROW(describe_needs(row.needs));
    if (fs::exists(entry.path() / "paper.yaml")) {
      EXPECT_FALSE(config::load<PaperConfig>(entry.path() / "paper.yaml").rows.empty());
    }
    ++count;
  }
  EXPECT_GE(count, 6);
  fs::current_path(before);
}

TEST_F(Experiment, OneTableHasOneProtocol) {
  const auto c = parse("rows: [{label: a, jobs: [{name: t}]}, {label: b, jobs: [{name: t}]}, {label: c, jobs: [{name: t}]}]");
  Outcome outcome;
  for (const char* label : {"a", "b", "c"}) {
    RowOutcome r{.label = label, .point = {}};
    r.result = measured(1, 1);
    outcome.rows.push_back(r);
  }
  outcome.rows[1].result.protocol = outcome.rows[2].result.protocol = "coco2017-5k";
  make_table(c, outcome, nullptr);  // a row without a protocol may stand beside them
  outcome.rows[2].result.protocol = "coco2017-5k (50 of 5000 prompts)";
  EXPECT_THAT(message_of<ConfigError>([&] { make_table(c, outcome, nullptr); }),
              HasSubstr("row 'b' was measured by coco2017-5k, row 'c' by coco2017-5k (50 of 5000 prompts)"));
}

TEST_F(Experiment, TablesStandBesideThePaper) {
  auto c = parse(
      "question: does it, 50 %?\nrows: [{label: a_b, jobs: [{name: t}]}]\nmatrix: {t.x: [1, 2], t.y: [p, q]}\ncolumns: "
      "[FD]");
  Outcome outcome;
  for (const PlannedRow& row : make_plan(c).rows) {
    RowOutcome r{.label = row.label, .scale = row.scale, .point = row.point};
    r.status = Status::done;
    r.result = measured(static_cast<double>(outcome.rows.size()) + 1, 1);
    r.result.metrics["other"] = {.value = 5, .n = 1};
    outcome.rows.push_back(r);
  }
  const auto paper = config::parse<PaperConfig>(
      "source: Table 2\nrows: [{label: 'a_b, x=1, y=q', metrics: {FD: 1.9, FID: 30}}, {label: rival, "
      "metrics: {FD: '-', FID: 31.5}}]");
  write_outcome(folder_, c, outcome, &paper);
  const std::string markdown = read_text(folder_ / "results.md"), csv = read_text(folder_ / "results.csv"),
                    latex = read_text(folder_ / "results.tex");
  EXPECT_THAT(markdown, HasSubstr("| row | FD[judge@1a2b3c4d] | FD (paper) | FID (paper) | steps |"));
  EXPECT_THAT(markdown, HasSubstr("| a_b, x=1, y=q | 2.00 \u00b1 0.50 | 1.9 | 30 |"));
  EXPECT_THAT(markdown, HasSubstr("| rival | - | - | 31.5 | - | - | - | - | - | paper only |"));
  EXPECT_THAT(markdown, HasSubstr("Paper: Table 2"));
  EXPECT_EQ(markdown.find("other"), std::string::npos);  // not among `columns`
  EXPECT_THAT(csv, HasSubstr("\"a_b, x=2, y=p\",3.00 \u00b1 0.50,-,-,"));
  EXPECT_THAT(latex, HasSubstr("a\\_b, x=1, y=q & 2.00 $\\pm$ 0.50 & 1.9"));
  EXPECT_THAT(latex, HasSubstr("50 \\%"));
  EXPECT_THAT(read_text(folder_ / "heat_map.svg"), HasSubstr("<svg"));
  const Json json = read_json(folder_ / "results.json");
  EXPECT_EQ(json["rows"][3]["matrix"]["t.x"], "2");
  EXPECT_EQ(json["rows"][3]["metrics"]["FD[judge@1a2b3c4d]"]["value"], 4.0);
  EXPECT_EQ(json["rows"][0]["status"], "done");
}

TEST_F(Experiment, VariantsOfAnEvaluationAreRowsOfTheTable) {
  // The one job writes results with a row for the samples and one for a variant of them.
  const fs::path results = folder_ / "results.json";
  eval::Results written{.name = "e", .protocol = "p", .rows = {}, .provenance = {}};
  for (const auto& [label, value] : {std::pair{"samples", 2.0}, {"guidance 2", 3.0}})
    written.rows.push_back({.label = label, .metrics = {{"cut_rate", {.value = value, .n = 10}}}});
  eval::save_results(results, written);
  const fs::path program =
      script("out=$(echo \"$3\" | sed 's/out=\"\\(.*\\)\"/\\1/'); mkdir -p \"$out\" && cp '" + results.string() + "' \"$out/results.json\"");
  write_text_atomic(folder_ / "e.yaml", "name: e\ndata: {kind: fashion_mnist}\nmetrics: [cut_rate]\nsets: [real]\n");
  const auto c = parse("rows: [{label: a, also: [guidance 2], jobs: [{name: e, command: eval, target: " +
                       (folder_ / "e.yaml").string() + "}]}, " +
                       "{label: b, measured: guidance 2, jobs: [{name: e, command: eval, target: " + (folder_ / "e.yaml").string() + "}]}]");
  const Outcome outcome = run_experiment(c, {.program = program, .only = {}});
  ASSERT_EQ(outcome.rows.size(), 3u);
  EXPECT_EQ(outcome.rows[0].result.metrics.at("cut_rate").value, 2.0) << outcome.rows[0].detail;
  EXPECT_EQ(outcome.rows[2].result.metrics.at("cut_rate").value, 3.0) << "the row's own 'measured'";
  EXPECT_EQ(outcome.rows[1].label, "a; guidance 2");
  EXPECT_EQ(outcome.rows[1].result.metrics.at("cut_rate").value, 3.0);
  EXPECT_EQ(calls().size(), 2u);  // made once a row
}

TEST_F(Experiment, CurvesHaveALineARowAndAPointAValue) {
  auto c = parse("curve_x: cut\ncurve_y: cla\nmatrix: {j.g: [1, 2, 3]}\nrows: [{label: a, jobs: [{name: j}]}, {label: b, jobs: [{name: j}]}]");
  Outcome outcome;
  for (const char* label : {"a, g=1", "a, g=2", "a, g=3", "b, g=1"})
    outcome.rows.push_back({.label = label, .point = {}, .result = {.label = label, .metrics = {{"cut_rate", {.value = 1}}, {"clash", {.value = 2}}}}});
  const std::string svg = curve(c, outcome);
  EXPECT_THAT(svg, HasSubstr("cut_rate"));
  EXPECT_THAT(svg, HasSubstr(">a<"));
  EXPECT_THAT(svg, testing::Not(HasSubstr(">b<")));  // one point is no line
  c.curve_x = c.curve_y = "";
  EXPECT_EQ(curve(c, outcome), "");
}

TEST_F(Experiment, CurvesOfEvalJobsAndNamedPointsInPanels) {
  auto c = parse("curve_x: cut\ncurve_y: cla\nrows: [{label: a, each_eval: true, jobs: [{name: s1, command: eval}, {name: s2, command: eval}]}]");
  Outcome outcome;
  for (const auto& [label, x] : {std::pair{"a; s1", 1.0}, {"a; s2", 10.0}})
    outcome.rows.push_back({.label = label, .point = {}, .result = {.label = label, .metrics = {{"cut_rate", {.value = x}}, {"clash", {.value = 2 * x}}, {"gflop", {.value = x}}}}});
  EXPECT_THAT(curve(c, outcome), HasSubstr(">a<"));
  c.curve_points = true, c.curve_also = {"gflop"};
  const std::string svg = curve(c, outcome);
  for (const char* part : {">a; s1<", ">a; s2<", ">cut_rate<", ">gflop<"}) EXPECT_THAT(svg, HasSubstr(part));
}

TEST_F(Experiment, RowsThatBeginAlikeShareTheirJobsAndAJobMayKeepItsSeed) {
  const std::string start = "{name: t, command: probe, folder: \"" + (folder_ / "models/t-${seed}").string() + "\", args: [\"${seed}\"]}";
  const auto yaml = [&](const std::string& second) {
    return "seeds: [1, 2]\nrows: [{label: a, jobs: [" + start + "]}, {label: b, jobs: [" + second + ", {name: u, command: probe more, args: [\"${seed}\"]}]}]";
  };
  fs::create_directories(folder_ / "models/t-1"), fs::create_directories(folder_ / "models/t-2");
  EXPECT_TRUE(run_experiment(parse(yaml(start)), {.program = script("exit 0"), .only = {}}).all_done());
  EXPECT_THAT(calls(), ElementsAre("probe 1", "probe 2", "probe more 1", "probe more 2"));
  // The same folder for something else, or after something else, is refused as before.
  EXPECT_THAT(config_error([&] { make_plan(parse(yaml("{name: t, command: other, folder: \"" + (folder_ / "models/t-${seed}").string() + "\"}"))); }),
              HasSubstr("another job writes"));
  EXPECT_THAT(config_error([&] { make_plan(parse(yaml("{name: before, command: probe}, " + start))); }), HasSubstr("another job writes"));

  const auto c = parse("seeds: [3]\nrows: [{label: a, jobs: [{name: e, command: eval, target: x.yaml, set: {seed: 5}}, {name: f, command: eval, target: x.yaml}]}]");
  const Plan plan = make_plan(c);
  const PlannedRun& run = plan.rows[0].runs[0];
  EXPECT_THAT(job_arguments(run.jobs[0], run), testing::Not(testing::Contains("seed=3")));
  EXPECT_THAT(job_arguments(run.jobs[0], run), testing::Contains("seed=5"));
  EXPECT_THAT(job_arguments(run.jobs[1], run), testing::Contains("seed=3"));
}

TEST(EarlierRows, StayWhereNothingWasRunHere) {
  const Json before = {{"rows", {{{"label", "a"}, {"status", "done"}, {"steps", 1}}, {{"label", "b"}, {"status", "done"}, {"steps", 2}},
                                 {{"label", "gone"}, {"status", "done"}}}}};
  const Json now = {{"rows", {{{"label", "a"}, {"status", "done"}, {"steps", 9}}, {{"label", "b"}, {"status", "waiting"}},
                              {{"label", "c"}, {"status", "waiting"}}}}};
  const Json merged = keep_earlier_rows(now, before);
  ASSERT_EQ(merged["rows"].size(), 3u);
  EXPECT_EQ(merged["rows"][0]["steps"], 9);
  EXPECT_EQ(merged["rows"][1]["steps"], 2);
  EXPECT_EQ(merged["rows"][2]["status"], "waiting");
  EXPECT_EQ(keep_earlier_rows(now, Json()), now);
}

TEST(FlowItems, SplitsAtTheTopLevelOnly) {
  EXPECT_THAT(flow_items("[1, 'a, b', [x, y], {k: [1, 2]}]"), ElementsAre("1", "'a, b'", "[x, y]", "{k: [1, 2]}"));
  EXPECT_THAT(flow_items("7"), ElementsAre("7"));
  EXPECT_THAT(flow_items("[]"), ElementsAre());
}

}  // namespace
}  // namespace fewstep::experiment
