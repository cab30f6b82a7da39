// COCO protocols: which captions are asked for, what is drawn for them, and what stops two numbers from being mixed.
#include "eval/protocols.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "eval/generation.h"
#include "eval/protocol_runner.h"
#include "src/base/files.h"
#include "src/base/text.h"
#include "src/config/config.h"
#include "src/tensor/ops.h"
#include "tests/support/message_of.h"
#include "tests/support/small_coco.h"
#include "tests/support/small_models.h"

namespace fewstep::eval {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
namespace fs = std::filesystem;
const fs::path kGolden = FEWSTEP_SOURCE_DIR "/tests/golden";

std::vector<CocoImage> three_images() {
  return {{30, "c.jpg", {{5, "aa"}, {1, "aaaa"}, {9, "a"}}},
          {10, "a.jpg", {{2, "b"}, {7, "bb"}}},
          {20, "b.jpg", {{3, "\u00e4\u00e4\u00e4"}, {4, "dddd"}, {6, "ccccccc"}}},
          {40, "none.jpg", {}}};
}
std::vector<int64_t> ids(const PromptRule& rule) {
  std::vector<int64_t> out;
  for (const Prompt& p : choose_prompts(three_images(), rule)) out.push_back(p.caption_id);
  return out;
}

TEST(Prompts, EachRuleChoosesItsCaption) {
  EXPECT_THAT(ids({.captions = CaptionRule::first}), ElementsAre(2, 3, 5));
  EXPECT_THAT(ids({.captions = CaptionRule::longest}), ElementsAre(1, 6, 7));
  // The record ("aaaa", index 1) stands until "ccccccc" (index 2) breaks it.
  EXPECT_THAT(ids({.captions = CaptionRule::sjd}), ElementsAre(1, 6, 7));
  std::vector<CocoImage> turned = three_images();
  std::swap(turned[0], turned[2]);  // the longest caption comes first: all later images use its index, 2
  std::vector<int64_t> sjd;
  for (const Prompt& p : choose_prompts(turned, {.captions = CaptionRule::sjd})) sjd.push_back(p.caption_id);
  EXPECT_THAT(sjd, ElementsAre(6, 7, 9));  // the image with two captions gives its last
  EXPECT_EQ(ids({.draw = PromptDraw::captions}).size(), 8u);
}

TEST(Prompts, DrawsAreSeededAndNested) {
  std::vector<CocoImage> images;
  for (int64_t i = 0; i < 200; ++i) images.push_back({i, "x", {{10 * i, "first"}, {10 * i + 1, "second"}}});
  const auto drawn = [&](const PromptRule& rule) {
    std::set<int64_t> out;
    for (const Prompt& p : choose_prompts(images, rule)) out.insert(p.caption_id);
    return out;
  };
  const auto few = drawn({.captions = CaptionRule::seeded, .count = 50}),
             many = drawn({.captions = CaptionRule::seeded, .count = 120});
  EXPECT_EQ(few.size(), 50u);
  EXPECT_TRUE(std::includes(many.begin(), many.end(), few.begin(), few.end()));
  EXPECT_NE(few, drawn({.captions = CaptionRule::seeded, .count = 50, .seed = 1}));
  const auto second = std::count_if(many.begin(), many.end(), [](int64_t id) { return id % 10 == 1; });
  EXPECT_GT(second, 30);
  EXPECT_LT(second, 90);
  std::reverse(images.begin(), images.end());
  EXPECT_EQ(few, drawn({.captions = CaptionRule::seeded, .count = 50}));  // whatever the order of the file
  EXPECT_THAT(message_of([&] { drawn({.count = 201}); }), AllOf(HasSubstr("201"), HasSubstr("200")));
}

TEST(Prompts, HashNamesTheList) {
  std::vector<Prompt> prompts = choose_prompts(three_images(), {});
  const std::string hash = prompts_sha256(prompts);
  prompts[1].text += ".";
  EXPECT_NE(prompts_sha256(prompts), hash);
  EXPECT_THAT(message_of([] {
                choose_prompts({{1, "a", {{5, "x"}}}, {2, "b", {{5, "y"}}}}, {});
              }),
              HasSubstr("caption id 5 is given twice"));
}

TEST(Prompts, KarpathySplits) {
  const fs::path file = fs::temp_directory_path() / fmt::format("fewstep-karpathy-{}.json", ::getpid());
  const auto image = [](const char* split, int64_t id) {
    return Json{{"filepath", "val2014"},
                {"filename", fmt::format("{}.jpg", id)},
                {"imgid", 0},
                {"split", split},
                {"cocoid", id},
                {"sentences",
                 {{{"raw", fmt::format("A cat {}. ", id)}, {"sentid", 10 * id}, {"imgid", 0}, {"tokens", {"a"}}}}}};
  };
  write_json(file, {{"dataset", "coco"}, {"images", {image("test", 4), image("restval", 5), image("test", 6)}}});
  const std::vector<CocoImage> test = read_karpathy_captions(file, "test");
  ASSERT_EQ(test.size(), 2u);
  EXPECT_EQ(test[1].id, 6);
  EXPECT_EQ(test[1].file_name, "val2014/6.jpg");
  EXPECT_EQ(test[1].captions.at(0).id, 60);
  EXPECT_EQ(test[1].captions.at(0).text, "A cat 6.");
  EXPECT_THAT(message_of([&] { read_karpathy_captions(file, "val"); }), HasSubstr("its splits are test, restval"));
  fs::remove(file);
}

TEST(Protocols, APartHasAnotherName) {
  const Protocol& p = find_protocol("coco2017-5k");
  EXPECT_EQ(protocol_label(p, 5000, 5000), "coco2017-5k");
  EXPECT_EQ(protocol_label(p, 50, 5000), "coco2017-5k (50 of 5000 prompts)");
  EXPECT_EQ(protocol_label(p, 50, 60), "coco2017-5k (50 of 5000 prompts, 60 of 5000 images)");
  EXPECT_THAT(message_of([] { find_protocol("coco-30k"); }), HasSubstr("coco2014-30k"));
}

class Coco : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    root() = fs::temp_directory_path() / fmt::format("fewstep-protocol-{}", ::getpid());
    support::write_small_coco(root() / "coco", 12);
    support::write_small_pipeline(root() / "model");
    support::write_small_clip(root() / "clip", kGolden / "clip_tokenizer");
  }
  static void TearDownTestSuite() { fs::remove_all(root()); }
  static fs::path& root() {
    static fs::path path;
    return path;
  }
  static std::string text(const std::string& out, const std::string& more = "") {
    return fmt::format(
        "name: test\nprotocol: coco2017-5k\nannotations: {0}/coco/captions_val2017.json\nimages: {0}/coco/val2017\n"
        "run: {0}/model\nout: {0}/{1}\ncache: {0}/cache\nencoders: {{inception: {2}/fid_inception_slim16, clip: "
        "{0}/clip, "
        "dinov2: {2}/dinov2, vgg: {2}/vgg16}}\ngenerate: {{batch_size: 5}}\n{3}",
        root().string(), out, kGolden.string(), more);
  }
  // Without the spatial features, which take seconds, unless others are named.
  static Results run(const std::string& out, const std::string& more = "") {
    const bool named = more.find("metrics:") != std::string::npos;
    return run_with(out, named ? more : more + "metrics: [fid, kid, inception_score, clip_score, prdc]\n");
  }
  static Results run_with(const std::string& out, const std::string& more) {
    auto c = config::parse<ProtocolConfig>(text(out, more));
    const auto world = dist::World::single();
    return run_protocol(c, *world);
  }
};

TEST_F(Coco, EveryNumberHasAnHonestName) {
  const Results r = run("all", "metrics: [fid, fid_infinity, kid, inception_score, clip_score, fd_dinov2, prdc]\n");
  const ResultRow& row = r.rows.at(0);
  EXPECT_EQ(row.protocol, "coco2017-5k (12 of 5000 prompts, 13 of 5000 images)");
  std::set<std::string> names;
  for (const auto& [name, value] : row.metrics) {
    names.insert(name.substr(0, name.find('[')));
    EXPECT_TRUE(std::isfinite(value.value)) << name;
    EXPECT_THAT(name, HasSubstr("@"));
  }
  EXPECT_EQ(names,
            (std::set<std::string>{"CLIPScore", "FD", "IS", "KD", "coverage", "density", "precision", "recall"}));
  EXPECT_DOUBLE_EQ(row.steps, 64);
  EXPECT_DOUBLE_EQ(row.step_compression, 1);
  const std::string page = read_text(root() / "all/results.md");
  EXPECT_THAT(page, AllOf(HasSubstr("FD[inception@"), HasSubstr("dominated by bias"), HasSubstr("| real images | 12 |"),
                          HasSubstr("captions shuffled: "), HasSubstr("\n1 of 12 captions were cut"), Not(HasSubstr("FID"))));
  EXPECT_THAT(read_text(root() / "all/report.html"), AllOf(HasSubstr("Worst of CLIPScore["), HasSubstr("caption id")));
  EXPECT_EQ(load_results(root() / "all/results.json").rows.at(0).protocol, row.protocol);
}

TEST_F(Coco, ResumesWithoutDrawingAgain) {
  const Results first = run("resumed");
  const fs::path samples = root() / "resumed/samples";
  EXPECT_TRUE(fs::exists(samples / "metadata.jsonl"));
  std::map<std::string, std::string> bytes;
  for (const auto& entry : fs::directory_iterator(samples))
    if (entry.path().extension() == ".png") bytes[entry.path().filename()] = read_text(entry.path());
  ASSERT_EQ(bytes.size(), 12u);
  // As after a kill: one image is gone, one line is torn.
  fs::remove(samples / bytes.begin()->first);
  const std::string record = read_text(samples / "drawn-0.jsonl");
  write_text_atomic(samples / "drawn-0.jsonl", record.substr(0, record.size() - 9));
  const auto untouched = fs::last_write_time(samples / std::next(bytes.begin(), 3)->first);
  const Results again = run("resumed");
  for (const auto& [name, content] : bytes) EXPECT_EQ(read_text(samples / name), content) << name;
  EXPECT_EQ(fs::last_write_time(samples / std::next(bytes.begin(), 3)->first), untouched);
  for (const auto& [name, value] : first.rows[0].metrics)
    EXPECT_EQ(again.rows[0].metrics.at(name).value, value.value) << name;
  EXPECT_THAT(message_of([] { run("resumed", "seed: 3\n"); }),
              AllOf(HasSubstr("seed is 0, now 3"), HasSubstr("another 'out'")));
}

TEST_F(Coco, SamplesDependOnTheCaptionAlone) {
  run("batched");
  auto c = config::parse<ProtocolConfig>(text("single", "limit: 4\nmetrics: [clip_score]\n"));
  c.generate.batch_size = 1;
  run_protocol(c, *dist::World::single());
  int64_t equal = 0;
  for (const auto& entry : fs::directory_iterator(root() / "single/samples"))
    if (entry.path().extension() == ".png")
      equal += read_text(entry.path()) == read_text(root() / "batched/samples" / entry.path().filename());
  EXPECT_EQ(equal, 4);
}

TEST_F(Coco, PairsAreComparedPromptByPrompt) {
  run("base");
  const Results r = run("other", fmt::format("paired_with: {}/base\n", root().string()));
  const auto value = [&](const std::string& start) {
    for (const auto& [name, v] : r.rows[0].metrics)
      if (name.starts_with(start)) return v.value;
    return std::numeric_limits<double>::quiet_NaN();
  };
  EXPECT_NEAR(value("FD_difference["), 0, 1e-9);  // the same model and seed
  EXPECT_NEAR(value("CLIPScore_difference["), 0, 1e-12);
  EXPECT_THAT(message_of([] { run("less", fmt::format("limit: 5\npaired_with: {}/base\n", root().string())); }),
              HasSubstr("has other prompts"));
}

TEST_F(Coco, FinishedImagesOfOtherTools) {
  const Results own = run("own", "metrics: [fid]\n");
  const fs::path there = root() / "finished";
  make_directories(there);
  std::string list;
  for (const std::string& line : split(read_text(root() / "own/samples/metadata.jsonl"), '\n')) {
    if (line.empty()) continue;
    Json row = Json::parse(line);
    const std::string name = fmt::format("image-{}.png", row["caption_id"].get<int64_t>());
    fs::copy(root() / "own/samples" / row["file_name"].get<std::string>(), there / name);
    list = Json{{"file_name", name}, {"caption_id", row["caption_id"]}}.dump() + "\n" + list;
  }
  write_text_atomic(there / "metadata.jsonl", list);
  auto c = config::parse<ProtocolConfig>(text("again", "metrics: [fid]\n"));
  c.run.clear(), c.samples = there.string();
  const Results again = run_protocol(c, *dist::World::single());
  EXPECT_EQ(again.rows[0].metrics.begin()->first, own.rows[0].metrics.begin()->first);
  EXPECT_DOUBLE_EQ(again.rows[0].metrics.begin()->second.value, own.rows[0].metrics.begin()->second.value);
  write_text_atomic(there / "metadata.jsonl", list.substr(0, list.size() / 2));
  EXPECT_THAT(message_of([&] { run_protocol(c, *dist::World::single()); }), HasSubstr("names no image for caption id"));
}

TEST_F(Coco, APublishedListHasItsHashInTheName) {
  // Every image of the file is a reference, one without captions too.
  fs::copy(root() / "coco/val2017/000000000139.jpg", root() / "coco/val2017/000000999999.jpg");
  write_text_atomic(root() / "list.txt", "A red bus\n\n  Two dogs on a couch \nA clock\n");
  auto c = config::parse<ProtocolConfig>(text("list", "metrics: [fid]\n"));
  c.protocol = "custom", c.custom.reference = ReferenceImages::all;
  c.prompts_file = (root() / "list.txt").string();
  const Results r = run_protocol(c, *dist::World::single());
  EXPECT_THAT(r.rows[0].protocol, testing::MatchesRegex("custom-[0-9a-f]*, prompts [0-9a-f]*"));
  EXPECT_TRUE(fs::exists(root() / "list/samples/000000000003.png"));  // the third line, counted with the empty one
  EXPECT_EQ(r.rows[0].metrics.begin()->second.n, 3);
  c.custom.reference = ReferenceImages::chosen;
  EXPECT_THAT(message_of([&] { run_protocol(c, *dist::World::single()); }), HasSubstr("a list of lines does not name them"));
}

TEST_F(Coco, WhatIsMissingIsNamed) {
  const fs::path victim = root() / "coco/val2017/000000000146.jpg", aside = root() / "aside.jpg";
  fs::rename(victim, aside);
  EXPECT_THAT(message_of([] { run("missing"); }), AllOf(HasSubstr("000000000146.jpg"), HasSubstr("no such image")));
  write_text_atomic(victim, "");
  EXPECT_THAT(message_of([] { run("missing"); }), HasSubstr("000000000146.jpg"));
  const Results r = run("missing", "skip_unreadable: true\nmetrics: [fid]\n");
  EXPECT_THAT(read_text(root() / "missing/results.md"),
              AllOf(HasSubstr("| real images | 11 | 0 | 0 | 1 |"), HasSubstr("Left out of the real images: ")));
  fs::rename(aside, victim);
  EXPECT_THAT(message_of([] { run("x", "metrics: [cmmd]\n"); }), HasSubstr("cmmd needs encoders.cmmd"));
  EXPECT_THAT(message_of([] { config::parse<ProtocolConfig>(text("x", "custom: {side: 64}\n")); }),
              HasSubstr("custom"));
  EXPECT_THAT(message_of([] { run("small", "metrics: [patch_fid]\n"); }),
              AllOf(HasSubstr("real images, crops"), HasSubstr("no crop of 299 fits into it")));
  // Before anything is drawn.
  auto c = config::parse<ProtocolConfig>(text("early", "metrics: [fid]\n"));
  c.encoders.inception = (root() / "clip-of-nobody").string();
  EXPECT_THAT(message_of([&] { run_protocol(c, *dist::World::single()); }), HasSubstr("clip-of-nobody: no such folder"));
  EXPECT_FALSE(fs::exists(root() / "early/samples"));
  c.encoders.inception = (kGolden / "fid_inception_slim16").string();
  c.images.clear(), c.reference = "statistics.h5", c.metrics = {"kid"};
  EXPECT_THAT(message_of([&] { run_protocol(c, *dist::World::single()); }), HasSubstr("kid needs 'images'"));
  EXPECT_FALSE(fs::exists(root() / "early/samples"));
  EXPECT_THAT(message_of([] { config::parse<ProtocolConfig>(text("x", "samples: there\n")); }),
              HasSubstr("either 'run' or 'samples'"));
}

}  // namespace
}  // namespace fewstep::eval
