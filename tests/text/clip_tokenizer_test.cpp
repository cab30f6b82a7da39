// CLIP's tokenizer beyond its golden file (tests/golden/clip_tokenizer, checked by models_golden_test).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/base/error.h"
#include "src/text/cleaning.h"
#include "src/text/clip_tokenizer.h"

namespace fewstep::text {
namespace {

const std::filesystem::path kGolden = FEWSTEP_SOURCE_DIR "/tests/golden/clip_tokenizer";

TEST(ClipTokenizer, ATextTooLongIsCutKeepsItsEndAndSaysSo) {
  const auto tokenizer = ClipTokenizer::load(kGolden);
  std::string text;
  for (int i = 0; i < 80; ++i) text += "cat ";
  const auto cut = tokenizer.encode_padded(text);
  EXPECT_TRUE(cut.truncated);
  ASSERT_EQ(cut.ids.size(), 77u);
  EXPECT_EQ(cut.ids.front(), tokenizer.start_id());
  EXPECT_EQ(cut.ids.back(), tokenizer.end_id());
  EXPECT_EQ(std::count(cut.ids.begin(), cut.ids.end(), tokenizer.end_id()), 1);

  std::string fits;
  for (int i = 0; i < 75; ++i) fits += "cat ";
  EXPECT_FALSE(tokenizer.encode_padded(fits).truncated);
  EXPECT_TRUE(tokenizer.encode_padded(fits + "cat").truncated);
}

TEST(ClipTokenizer, DecodeGivesTheWordsBack) {
  const auto tokenizer = ClipTokenizer::load(kGolden);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("  A red SOFA, isn't it?")), "a red sofa , isn 't it ?");
}

// A file whose bytes are not UTF-8 has ids all the same: every byte is a symbol.
TEST(ClipTokenizer, BytesThatAreNotUtf8StayBytes) {
  const auto tokenizer = ClipTokenizer::load(kGolden);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("caf\xE9")), "caf \xE9");
}

TEST(Cleaning, TheTwoImplementationsDifferWhereTheyShould) {
  const auto hf = [](std::string_view t) { return clean_for_clip(t, ClipCleaning::huggingface); };
  const auto oc = [](std::string_view t) { return clean_for_clip(t, ClipCleaning::open_clip); };
  EXPECT_EQ(hf("Don\u2019t &amp; \uFB01sh"), "don\u2019t &amp; \uFB01sh");
  EXPECT_EQ(oc("Don\u2019t &amp; \uFB01sh"), "don't & fish");
  EXPECT_EQ(hf("\u03A3\u038A\u03A3"), "\u03C3\u03AF\u03C3");  // no final sigma
  EXPECT_EQ(oc("\u03A3\u038A\u03A3"), "\u03C3\u03AF\u03C2");
  EXPECT_EQ(hf("cafe\u0301"), "caf\u00E9");  // NFC
}

TEST(Cleaning, EntitiesAndEscapes) {
  EXPECT_EQ(unescape_html("&lt;b&gt; &#39;x&#x27; &copy; &#xD800; & &;"), "<b> 'x' &copy; &#xD800; & &;");
  EXPECT_EQ(fix_text("\x1B[31mred\x1B[0m\r\nnext\x07"), "red\nnext");
  EXPECT_EQ(fix_text("\uFF21\uFF22 \uFF76"), "AB \u30AB");  // full-width letters, half-width katakana
}

}  // namespace
}  // namespace fewstep::text
