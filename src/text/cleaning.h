// Steps that text encoders' own preprocessing consists of. All take and give UTF-8; bytes that are not stay as they
// are.
#pragma once
#include <string>
#include <string_view>

namespace fewstep::text {

std::string normalise_nfc(std::string_view text);
// Lower case of every code point by itself, as Rust's tokenizers do it (capital I with dot becomes i and a combining
// dot). `final_sigma`: a capital sigma that ends a word becomes the final form, as in Python's str.lower().
std::string to_lower(std::string_view text, bool final_sigma = false);
std::string collapse_white_space(std::string_view text);  // runs become one blank, none at either end
// &amp; &lt; &gt; &quot; &apos; &nbsp; and numeric entities; others stay.
std::string unescape_html(std::string_view text);
// ftfy.fix_text (version 6) without the repair of wrongly decoded text: entities, terminal escapes, C1 control
// characters, ligatures, full- and half-width forms, curly quotes, line breaks, control characters, NFC.
std::string fix_text(std::string_view text);

}  // namespace fewstep::text
