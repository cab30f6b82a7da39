#include "src/text/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <random>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/json.h"
#include "src/text/unicode.h"

namespace fewstep::text {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

// What captions look like, and some other scripts so that merges across bytes exist.
std::vector<std::string> corpus() {
  std::vector<std::string> texts;
  for (const char* word : {"t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "ankle boot"})
    for (const char* tone : {"dark", "mid", "bright"})
      texts.push_back(std::string("a photo of a ") + tone + " long " + word + ", wide");
  for (int i = 0; i < 3; ++i)
    texts.push_back("\xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E caf\xC3\xA9 it's 123 12 \xC2\xBD!!");
  return texts;
}

class Bpe : public testing::Test {
 protected:
  Bpe() : folder(fs::temp_directory_path() / ("bpe_test_" + std::to_string(getpid()))) {
    fs::create_directories(folder);
  }
  ~Bpe() override { fs::remove_all(folder); }
  // The message of the DataError that load() answers with after `change` was written to `file`.
  std::string load_error(const std::string& file, const std::string& content) {
    BpeTokenizer::train(corpus(), 320).save(folder);
    write_text_atomic(folder / file, content);
    try {
      BpeTokenizer::load(folder);
    } catch (const DataError& e) {
      return e.what();
    }
    return "no error";
  }
  fs::path folder;
};

TEST(SplitWords, FollowsThePatternOfGpt2) {
  EXPECT_THAT(split_words("a dark  dress"), ElementsAre("a", " dark", " ", " dress"));
  EXPECT_THAT(split_words("it's 12 boots!? "), ElementsAre("it", "'s", " 12", " boots", "!?", " "));
  EXPECT_THAT(split_words("a\n\n b"), ElementsAre("a", "\n\n", " b"));
  EXPECT_THAT(split_words("a\nb"), ElementsAre("a", "\n", "b"));
  EXPECT_THAT(split_words("\xC3\xA9t\xC3\xA9 \xC2\xBD"), ElementsAre("\xC3\xA9t\xC3\xA9", " \xC2\xBD"));
  EXPECT_THAT(split_words("t-shirt"), ElementsAre("t", "-", "shirt"));
  EXPECT_TRUE(split_words("").empty());
}

TEST(Unicode, RefusesWhatIsNotUtf8) {
  // Overlong '/', a surrogate, above U+10FFFF, a torn sequence, a lone continuation byte.
  for (std::string bytes : {"\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE6\x97", "\x80"}) {
    const CodePoint c = code_point_at(bytes, 0);
    EXPECT_EQ(c.bytes, 1u);
    EXPECT_GE(c.value, kInvalid);
    EXPECT_EQ(char_class(c.value), CharClass::other);
  }
  EXPECT_EQ(code_point_at("\xF0\x9F\x8E\x89", 0).value, 0x1F389u);
}

TEST_F(Bpe, IsDeterministicWhateverTheOrderOfTheCorpus) {
  std::vector<std::string> texts = corpus();
  const auto a = BpeTokenizer::train(texts, 320);
  std::reverse(texts.begin(), texts.end());
  const auto b = BpeTokenizer::train(texts, 320);
  ASSERT_EQ(a.vocab_size(), 320);
  ASSERT_EQ(b.vocab_size(), 320);
  for (int64_t id = 0; id < 320; ++id) EXPECT_EQ(a.token(id), b.token(id));
  EXPECT_EQ(a.pad_id(), 0);
  EXPECT_EQ(a.bos_id(), 1);
  EXPECT_EQ(a.eos_id(), 2);
}

TEST_F(Bpe, MergesTheMostFrequentPairAndBreaksTiesByText) {
  // " ab" once a text: (a, b) 4 times, (c, d) and (e, f) 2 times each, and no pair across words.
  const auto t = BpeTokenizer::train({"ab cd", "ab ef", "ab cd", "ab ef"}, 262);
  EXPECT_EQ(t.token(259), "ab");
  EXPECT_EQ(t.token(260), "cd");  // before "ef" and before "\u0120c", whose first symbol sorts later
  EXPECT_EQ(t.token(261), "ef");
  EXPECT_EQ(BpeTokenizer::train({"ab"}, 1000).vocab_size(), 259);  // nothing occurs twice
  EXPECT_THROW(BpeTokenizer::train({"ab"}, 258), ConfigError);
}

TEST_F(Bpe, GivesAnyBytesBack) {
  BpeTokenizer::train(corpus(), 340).save(folder);
  const auto t = BpeTokenizer::load(folder);
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (size_t n = random() % 60; n > 0; --n)
      if (random() % 2) {
        append_utf8(static_cast<uint32_t>(random() % 0x3000), text);
      } else {
        text.push_back(static_cast<char>(random()));
      }
    EXPECT_EQ(t.decode(t.encode(text)), text);
  }
  std::vector<int64_t> ids = {t.bos_id()};
  for (int64_t id : t.encode("a dress")) ids.push_back(id);
  ids.insert(ids.end(), {t.eos_id(), t.pad_id()});
  EXPECT_EQ(t.decode(ids), "a dress");
  EXPECT_THROW(t.decode(std::vector<int64_t>{340}), Error);
}

TEST_F(Bpe, AgreesWithHuggingFace) {
  BpeTokenizer::train(corpus(), 340).save(folder);
  const auto t = BpeTokenizer::load(folder);
  const Json golden = read_json(fs::path(FEWSTEP_SOURCE_DIR) / "tests/golden/bpe/cases.json");
  ASSERT_GE(golden["cases"].size(), 200u);
  for (const Json& c : golden["cases"])
    EXPECT_EQ(t.encode(c["text"].get<std::string>()), c["ids"].get<std::vector<int64_t>>()) << c["text"];
}

TEST_F(Bpe, SavesTheSameFilesTwice) {
  BpeTokenizer::train(corpus(), 340).save(folder / "a");
  BpeTokenizer::load(folder / "a").save(folder / "b");
  for (const char* file : {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"})
    EXPECT_EQ(read_text(folder / "a" / file), read_text(folder / "b" / file)) << file;
}

TEST_F(Bpe, NamesWhatIsWrongWithAFile) {
  EXPECT_THAT(load_error("vocab.json", "{\"a\": 0"), HasSubstr("vocab.json"));
  EXPECT_THAT(load_error("vocab.json", "[1]"), HasSubstr("expected an object"));
  EXPECT_THAT(load_error("vocab.json", "{\"a\": \"x\"}"), HasSubstr("not an integer"));
  EXPECT_THAT(load_error("vocab.json", "{\"a\": 1}"), HasSubstr("the id of 'a' is 1, but 1 tokens have ids 0 to 0"));
  EXPECT_THAT(load_error("vocab.json", "{\"a\": 0, \"b\": 0}"), HasSubstr("both have id 0"));
  EXPECT_THAT(load_error("vocab.json", "{\"a\": 0}"), HasSubstr("no token for byte 0"));
  EXPECT_THAT(load_error("merges.txt", "#version: 0.2\na b c\n"), HasSubstr("merges.txt:2: expected two symbols"));
  EXPECT_THAT(load_error("merges.txt", "a q\n"), HasSubstr("merges.txt:1: 'aq' is not in vocab.json"));
  BpeTokenizer::train(corpus(), 320).save(folder);
  const std::string merges = read_text(folder / "merges.txt");
  const std::string last = merges.substr(merges.rfind('\n', merges.size() - 2) + 1);
  EXPECT_THAT(load_error("merges.txt", last + last), HasSubstr("is given twice"));
  EXPECT_THAT(load_error("special_tokens_map.json", "{}"), HasSubstr("'pad_token' is missing"));
  EXPECT_THAT(load_error("special_tokens_map.json", R"({"pad_token": "<none>"})"), HasSubstr("not in vocab.json"));
  fs::remove(folder / "vocab.json");
  EXPECT_THROW(BpeTokenizer::load(folder), DataError);
}

// The input of tools/golden/bpe.py.
TEST_F(Bpe, WritesGoldenVocabulary) {
  const char* out = std::getenv("FEWSTEP_GOLDEN_OUT");
  if (!out) GTEST_SKIP() << "set FEWSTEP_GOLDEN_OUT to a folder";
  BpeTokenizer::train(corpus(), 340).save(out);
}

}  // namespace
}  // namespace fewstep::text
