#include "eval/html.h"

#include <algorithm>
#include <array>

#include "src/base/error.h"
#include "src/base/text.h"

namespace fewstep::eval {
namespace {

constexpr std::array<std::string_view, 9> kVoid = {"meta", "link", "img", "br", "hr", "input", "wbr", "col", "source"};

bool is_void(std::string_view tag) { return std::find(kVoid.begin(), kVoid.end(), tag) != kVoid.end(); }

}  // namespace

std::string base64(std::string_view bytes) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j)
      group = (group << 8) | (i + j < bytes.size() ? static_cast<uint8_t>(bytes[i + j]) : 0u);
    for (size_t j = 0; j < 4; ++j) out += i + j <= bytes.size() ? kDigits[(group >> (18 - 6 * j)) & 63] : '=';
  }
  return out;
}

void Html::start(std::string_view tag, const Attributes& attributes) {
  out_ += '<';
  out_ += tag;
  for (const auto& [key, value] : attributes) out_ += fmt::format(" {}=\"{}\"", key, escape_html(value));
  out_ += '>';
}

Html::Element Html::open(std::string_view tag, const Attributes& attributes) {
  FEW_CHECK(!is_void(tag), "<{}> has no content", tag);
  start(tag, attributes);
  stack_.emplace_back(tag);
  return Element(this);
}

void Html::close() {
  out_ += fmt::format("</{}>\n", stack_.back());
  stack_.pop_back();
}

void Html::leaf(std::string_view tag, std::string_view content, const Attributes& attributes) {
  start(tag, attributes);
  text(content);
  out_ += fmt::format("</{}>\n", tag);
}

void Html::image(std::string_view png, std::string_view alternative, const Attributes& attributes) {
  Attributes all = attributes;
  all.emplace_back("alt", std::string(alternative));
  all.emplace_back("src", "data:image/png;base64," + base64(png));
  start("img", all);
}

void Html::text(std::string_view content) { out_ += escape_html(content); }
void Html::raw(std::string_view markup) { out_ += markup; }

std::string Html::page(std::string_view title, std::string_view style) const {
  FEW_CHECK(stack_.empty(), "<{}> is still open", stack_.back());
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
      "<meta name=\"color-scheme\" content=\"light "
      "dark\"><title>{}</title>\n<style>{}</style></head>\n<body>\n{}</body></html>\n",
      escape_html(title), style, out_);
}

std::string check_balanced(std::string_view html) {
  std::vector<std::string> stack;
  for (size_t i = html.find('<'); i != std::string_view::npos; i = html.find('<', i + 1)) {
    if (html.substr(i).starts_with("<!--")) {
      i = html.find("-->", i);
      if (i == std::string_view::npos) return "comment is not closed";
      continue;
    }
    const size_t end = html.find('>', i);
    if (end == std::string_view::npos) return fmt::format("no '>' after offset {}", i);
    std::string_view tag = html.substr(i + 1, end - i - 1);
    if (tag.starts_with('!') || tag.starts_with('?')) continue;
    const bool closing = tag.starts_with('/'), self_closed = tag.ends_with('/');
    if (closing) tag.remove_prefix(1);
    const std::string name = to_lower(tag.substr(0, tag.find_first_of(" \t\n/>")));
    if (closing) {
      if (stack.empty() || stack.back() != name)
        return fmt::format("</{}> at offset {} closes <{}>", name, i, stack.empty() ? "nothing" : stack.back());
      stack.pop_back();
    } else if (!self_closed && !is_void(name)) {
      stack.push_back(name);
      if (name == "style" || name == "script") i = html.find("</" + name, end) - 1;  // raw text
    }
  }
  return stack.empty() ? "" : fmt::format("<{}> is never closed", stack.back());
}

}  // namespace fewstep::eval
