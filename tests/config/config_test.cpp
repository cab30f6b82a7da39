// Reader, layers and writer of configs. The corpus bad/*.yaml is compared with bad/*.expected; after a change that is
// meant, FEWSTEP_UPDATE=1 writes the files anew (look at the difference before committing it).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/text.h"
#include "src/config/diff.h"
#include "src/config/scalar.h"
#include "tests/config/sample.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
using config::load;
using config::parse;
using config::to_yaml;
using sample::Sample;
using testing::HasSubstr;

const fs::path kFolder = fs::path(FEWSTEP_SOURCE_DIR) / "tests/config";

class Scratch {
 public:
  Scratch() : path_(fs::temp_directory_path() / fmt::format("fewstep_config_{}", ::getpid())) {
    fs::create_directories(path_);
  }
  ~Scratch() { fs::remove_all(path_); }
  fs::path write(const std::string& name, const std::string& text) const {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << text;
    return path_ / name;
  }
  fs::path path(const std::string& name) const { return path_ / name; }

 private:
  fs::path path_;
};

// The message of the ConfigError, with `folder`/ removed from its lines.
template <class F>
std::string error_of(const F& f, const fs::path& folder = {}) {
  try {
    f();
  } catch (const ConfigError& e) {
    std::string text = e.what();
    const std::string prefix = folder.string() + "/";
    for (size_t at; !folder.empty() && (at = text.find(prefix)) != std::string::npos;) text.erase(at, prefix.size());
    return text;
  }
  return "(no error)";
}
std::string error_in(const std::string& yaml) {
  return error_of([&] { parse<Sample>(yaml, "f"); });
}

TEST(Config, EveryBadFileIsReportedAsExpected) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(kFolder / "bad"))
    if (entry.path().extension() == ".yaml") files.push_back(entry.path());
  ASSERT_GE(files.size(), 48u);
  for (const fs::path& file : files) {
    SCOPED_TRACE(file.filename().string());
    const std::string message = error_of([&] { load<Sample>(file); }, kFolder) + "\n";
    fs::path expected = file;
    expected.replace_extension(".expected");
    if (std::getenv("FEWSTEP_UPDATE")) std::ofstream(expected) << message;
    EXPECT_EQ(message, read_text(expected));
  }
}

TEST(Config, LayersMergeMapsAndReplaceTheRest) {
  const Scratch s;
  s.write("low/lowest.yaml",
          "seed: 1\nsteps: 10\noptimizer: {lr: 1e-2, beta1: 0.1}\ntimesteps: [1, 2, 3]\nscales: [1, 1, 1]\n");
  s.write("low/middle.yaml",
          "base: lowest.yaml\nseed: 2\noptimizer: {beta1: 0.2}\nmodel: {kind: unet, width: 64, micro: false}\n");
  const auto top =
      s.write("top.yaml", "base: low/middle.yaml\nname: t\ntimesteps: [5]\nscales: [2]\nmodel: {width: 32}\n");
  Sample run = load<Sample>(top);
  EXPECT_EQ(run.seed, 2);
  EXPECT_EQ(run.steps, 10);
  EXPECT_EQ(run.optimizer, (sample::Optimizer{1e-2, 0.2, sample::Schedule::cosine}));
  EXPECT_EQ(run.timesteps, std::vector<int64_t>{5});
  const auto& unet = dynamic_cast<const sample::Unet&>(*run.model);
  EXPECT_EQ(unet.width, 32);
  EXPECT_FALSE(unet.micro);
}

TEST(Config, AnotherKindDropsTheEntriesBelow) {
  const Scratch s;
  s.write("base.yaml", "name: t\nmodel: {kind: unet, width: 64}\n");
  const auto top = s.write("top.yaml", "base: base.yaml\nmodel: {kind: transformer, depth: 2}\n");
  EXPECT_EQ(dynamic_cast<const sample::Transformer&>(*load<Sample>(top).model).depth, 2);
  const auto base = s.path("base.yaml");
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"model.kind=transformer", "model.depth=3"},
                                                    {"model.depth=3", "model.kind=transformer"}})
    EXPECT_EQ(dynamic_cast<const sample::Transformer&>(*load<Sample>(base, arguments).model).depth, 3);
  const auto wrong = s.write("wrong.yaml", "base: base.yaml\nmodel: {kind: transformer, width: 2}\n");
  EXPECT_EQ(error_of([&] { load<Sample>(wrong); }, s.path("")),
            s.path("wrong.yaml").string() + ":2:28: unknown key 'model.width' (known: kind, depth, optimizer)");
}

TEST(Config, OverridesAreTheTopLayer) {
  const Scratch s;
  const auto file = s.write("f.yaml", "name: t\nseed: 1\noptimizer: {lr: 1}\n");
  const std::vector<std::string> overrides = {
      "seed=7",        "optimizer={beta1: 0.3, schedule: constant}", "timesteps=[4]", "scales=[3]",
      "name=\"a: b\"", "rows=[{label: r, set: {x.y: [1, z]}}]",      "seed=8"};
  const Sample run = load<Sample>(file, overrides);
  EXPECT_EQ(run.seed, 8);
  EXPECT_EQ(run.optimizer, (sample::Optimizer{1, 0.3, sample::Schedule::constant}));
  EXPECT_EQ(run.name, "a: b");
  ASSERT_EQ(run.rows.size(), 1u);
  EXPECT_EQ(run.rows[0].set, (config::Overrides{{"x.y", "[1, z]"}}));
}

TEST(Config, AnEmptyOverrideIsAnEmptyText) {
  const Scratch s;
  const auto file = s.write("f.yaml", "name: t\n");
  EXPECT_EQ(load<Sample>(file, std::vector<std::string>{"name="}).name, "");
  EXPECT_EQ(load<Sample>(file, std::vector<std::string>{"name= "}).name, "");
  EXPECT_THAT(error_of([&] { load<Sample>(file, std::vector<std::string>{"seed="}); }), testing::HasSubstr("seed: "));
}

TEST(Config, OverridesAreReportedWithTheirNumberAndColumn) {
  const Scratch s;
  const auto file = s.write("f.yaml", "name: t\nsede: 1\n");
  const std::vector<std::string> overrides = {"steps=0",     "optimizer.lrr=1", "seed",      "a..b=1",
                                              "base=x.yaml", "weight=[",        "resume=yes"};
  EXPECT_EQ(error_of([&] { load<Sample>(file, overrides); }),
            file.string() + ":2:1: unknown key 'sede' (did you mean 'seed'?)\n" +
                "command line:1:7: steps: 0 must be at least 1\n"
                "command line:2:1: unknown key 'optimizer.lrr' (did you mean 'lr'?)\n"
                "command line:3:1: 'seed' is not of the form key.path=value\n"
                "command line:4:1: 'a..b=1' has an empty part in its key\n"
                "command line:5:1: base: can only be given in a file\n"
                "command line:6:9: not valid YAML: end of sequence flow not found\n"
                "command line:7:8: resume: expected true or false, got 'yes' (write true)");
}

TEST(Config, AMissingKeyIsReportedInTheFileNotOnTheCommandLine) {
  const Scratch s;
  const auto file = s.write("f.yaml", "model:\n  width: 9\n");
  EXPECT_EQ(error_of([&] { load<Sample>(file, std::vector<std::string>{"model.micro=true"}); }),
            file.string() + ":1:1: missing key 'name'\n" + file.string() +
                ":1:1: missing key 'model.kind' (one of unet, transformer)");
}

TEST(Config, OverridesAloneFillAStruct) {
  sample::Optimizer o{0.5, 0.25, sample::Schedule::constant};
  config::read_overrides(std::vector<std::string>{"beta1=0.75"}, config::describe_root<sample::Optimizer>(), &o);
  EXPECT_EQ(o, (sample::Optimizer{0.5, 0.75, sample::Schedule::constant}));
}

TEST(Config, TopLevelKeysIncludeTheBases) {
  const Scratch s;
  s.write("base.yaml", "rows: []\nname: x\n");
  EXPECT_EQ(config::top_level_keys(s.write("f.yaml", "base: base.yaml\nname: y\nseed: oops\n")),
            (std::vector<std::string>{"rows", "name", "seed"}));
}

TEST(Config, UnreadableFiles) {
  EXPECT_EQ(error_of([] { load<Sample>("nowhere/f.yaml"); }),
            "nowhere/f.yaml: cannot be read: No such file or directory");
  EXPECT_THAT(error_of([] { load<Sample>("/"); }), HasSubstr("is a folder"));
  const Scratch s;
  const auto huge = s.write("huge.yaml", "name: " + std::string(5 << 20, 'x') + "\n");
  EXPECT_THAT(error_of([&] { load<Sample>(huge); }), HasSubstr("larger than 4.0 MiB"));
}

TEST(Config, EmptyFilesAndByteOrderMarks) {
  EXPECT_EQ(error_in(""), "f:1:1: missing key 'name'");
  EXPECT_EQ(error_in("# only a comment\n"), "f:1:1: missing key 'name'");
  EXPECT_EQ(parse<Sample>("\xEF\xBB\xBFname: x\r\nseed: 3\r\n").seed, 3);
}

TEST(Config, ManyProblemsAreCut) {
  std::string yaml = "name: x\n";
  for (int i = 0; i < 1000; ++i) yaml += fmt::format("key{}: 1\n", i);
  const std::string message = error_in(yaml);
  EXPECT_LT(split(message, '\n').size(), 210u);
  EXPECT_THAT(message, HasSubstr("\n... and 800 more"));
}

TEST(Config, DeepAndLongInputEndsQuickly) {
  EXPECT_THAT(error_in("name: x\nprompts: " + std::string(100000, '[')), HasSubstr("nested deeper than 64 levels"));
  EXPECT_THAT(error_in("name: x\n" + std::string(100000, '{')), HasSubstr("nested deeper than 64 levels"));
  std::string list = "name: x\nprompts: [";
  for (int i = 0; i < 200000; ++i) list += "\xC3\xA9,";
  EXPECT_EQ(parse<Sample>(list + "]").prompts.size(), 200000u);
}

TEST(Config, NullPointersStayAndDefaultsKeepTheirKind) {
  const Sample plain = parse<Sample>("name: x");
  EXPECT_EQ(plain.model, nullptr);
  EXPECT_EQ(plain.teacher->kind(), "unet");
  const Sample changed = parse<Sample>("name: x\nteacher: {width: 16}");
  EXPECT_EQ(dynamic_cast<const sample::Unet&>(*changed.teacher).width, 16);
}

TEST(Scalar, DoublesRoundTrip) {
  std::mt19937_64 rng(1);
  for (int i = 0; i < 20000; ++i) {
    const double x = std::bit_cast<double>(rng());
    if (!std::isfinite(x)) continue;
    double y = 0;
    ASSERT_EQ(config::parse_double(config::double_text(x), y), std::nullopt) << config::double_text(x);
    ASSERT_EQ(std::bit_cast<uint64_t>(x), std::bit_cast<uint64_t>(y));
  }
  EXPECT_THROW(config::double_text(std::nan("")), ConfigError);
}

TEST(Scalar, WhatIsNotANumber) {
  double d = 0;
  for (const char* text : {"", "-", ".", "1e", "+1", "1 ", " 1", "0x1p3", "1,5", "--1", "1e5.5", "nan", "inf", "1d0"})
    EXPECT_TRUE(config::parse_double(text, d).has_value()) << text;
  int64_t i = 0;
  for (const char* text : {"", "-", "+1", "1.0", "1e3", "0x10", "010", "-01", "1_000", " 1", "9223372036854775808"})
    EXPECT_TRUE(config::parse_int(text, i).has_value()) << text;
  EXPECT_FALSE(config::parse_int("-9223372036854775808", i).has_value());
  EXPECT_EQ(i, std::numeric_limits<int64_t>::min());
}

// Random structs: what is written reads back to the same.
std::string random_string(std::mt19937_64& rng) {
  static const std::vector<std::string> kParts = {
      "a", "Z",  "0", "1",      ".",      "-",      " ",    ":",    "#",   "'", "\"", "\\", "\n", "\t", "\r",
      "é", "漢", "😀", "\u0085", "\u2028", "\ufeff", "\x01", "\x7f", ",",   "[", "{",  "&",  "*",  "!",  "|",
      ">", "%",  "@", "true",   "null",   "~",      "yes",  "1e3",  "---", "=", "<<", "?",  "..."};
  std::string out;
  for (size_t n = rng() % 6; n > 0; --n) out += kParts[rng() % kParts.size()];
  return out;
}
double random_double(std::mt19937_64& rng, double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(rng);
}
sample::Optimizer random_optimizer(std::mt19937_64& rng) {
  return {std::exp(random_double(rng, -300, 300)), random_double(rng, 0, 1), static_cast<sample::Schedule>(rng() % 2)};
}
Sample random_run(std::mt19937_64& rng) {
  Sample run;
  run.name = random_string(rng);
  run.seed = static_cast<int64_t>(rng());
  run.steps = static_cast<int64_t>(rng() >> 1) | 1;
  run.resume = rng() % 2;
  run.weight = random_double(rng, 0, 1);
  run.timesteps.clear(), run.scales.clear();
  for (size_t n = rng() % 4; n > 0; --n)
    run.timesteps.push_back(static_cast<int64_t>(rng() % 1000)), run.scales.push_back(random_double(rng, 1e-9, 9));
  for (size_t n = rng() % 4; n > 0; --n) run.prompts.push_back(random_string(rng));
  run.optimizer = random_optimizer(rng);
  for (size_t n = rng() % 4; n > 0; --n) {
    sample::Row row{random_string(rng), {}, random_optimizer(rng)};
    for (size_t i = 0; i < rng() % 3; ++i)
      row.set.emplace_back(fmt::format("k{}.{}", i, "x"), config::string_text(random_string(rng)));
    if (rng() % 2) row.set.emplace_back("list", "[1, \"1\", {a: true, \"b c\": [\"\"]}]");
    run.rows.push_back(row);
  }
  if (rng() % 3) {
    auto unet = std::make_unique<sample::Unet>();
    unet->width = 8 + static_cast<int64_t>(rng() % 99);
    run.model = std::move(unet);
  }
  if (rng() % 2) {
    auto transformer = std::make_unique<sample::Transformer>();
    transformer->optimizer = random_optimizer(rng);
    run.teacher = std::move(transformer);
  }
  return run;
}

TEST(Writer, RandomStructsRoundTrip) {
  std::mt19937_64 rng(7);
  for (int i = 0; i < 500; ++i) {
    Sample run = random_run(rng);
    const std::string yaml = to_yaml(run);
    SCOPED_TRACE(yaml);
    Sample again = parse<Sample>(yaml);
    ASSERT_EQ(again.name, run.name);
    ASSERT_EQ(again.seed, run.seed);
    ASSERT_EQ(again.steps, run.steps);
    ASSERT_EQ(again.resume, run.resume);
    ASSERT_EQ(again.weight, run.weight);
    ASSERT_EQ(again.timesteps, run.timesteps);
    ASSERT_EQ(again.scales, run.scales);
    ASSERT_EQ(again.prompts, run.prompts);
    ASSERT_EQ(again.optimizer, run.optimizer);
    ASSERT_EQ(again.rows, run.rows);
    ASSERT_EQ(again.model == nullptr, run.model == nullptr);
    ASSERT_EQ(again.teacher->kind(), run.teacher->kind());
    ASSERT_EQ(to_yaml(again), yaml);
    ASSERT_TRUE(config::differences(yaml, to_yaml(again)).empty());
  }
}

TEST(Writer, RefusesWhatYamlCannotHold) {
  Sample run;
  run.name = "caf\xe9";
  EXPECT_THAT(error_of([&] { to_yaml(run); }), HasSubstr("'caf\\xe9' cannot be written into a config"));
}

TEST(Writer, GoodFileGivesTheExpectedText) {
  Sample run = load<Sample>(kFolder / "good/run.yaml");
  const fs::path expected = kFolder / "good/run.resolved";
  if (std::getenv("FEWSTEP_UPDATE")) std::ofstream(expected) << to_yaml(run);
  EXPECT_EQ(to_yaml(run), read_text(expected));
}

TEST(Explain, ListsEveryKeyOfEveryKind) {
  Sample run;
  const fs::path expected = kFolder / "good/explain.txt";
  if (std::getenv("FEWSTEP_UPDATE")) std::ofstream(expected) << config::explain(run);
  EXPECT_EQ(config::explain(run), read_text(expected));
}

TEST(Diff, NamesTheKeysThatChanged) {
  const auto d = config::differences("a: 1\nb: {c: [1, 2], e: x}\n", "b: {c: [1, 3], e: x}\nf: 1\n");
  ASSERT_EQ(d.size(), 3u);
  EXPECT_EQ(d[0].key + d[0].before + d[0].after, "a1(absent)");
  EXPECT_EQ(d[1].key + d[1].before + d[1].after, "b.c[1, 2][1, 3]");
  EXPECT_EQ(d[2].key + d[2].before + d[2].after, "f(absent)1");
  EXPECT_THAT(error_of([] { config::differences("a: [", "a: 1"); }), HasSubstr("config before:1:5: not valid YAML"));
}

}  // namespace
}  // namespace fewstep
