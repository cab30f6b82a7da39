// HTML by construction: every element that is opened is closed, text is escaped, nothing is fetched from outside.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fewstep::eval {

std::string base64(std::string_view bytes);

class Html {
 public:
  using Attributes = std::vector<std::pair<std::string_view, std::string>>;
  // An element as long as the object lives: `auto table = html.open("table");`.
  class Element {
   public:
    explicit Element(Html* html) : html_(html) {}
    ~Element() {
      if (html_) html_->close();
    }
    Element(Element&& other) noexcept : html_(std::exchange(other.html_, nullptr)) {}
    Element& operator=(Element&&) = delete;

   private:
    Html* html_;
  };
  [[nodiscard]] Element open(std::string_view tag, const Attributes& attributes = {});
  void leaf(std::string_view tag, std::string_view text, const Attributes& attributes = {});  // <tag>text</tag>
  void image(std::string_view png, std::string_view alternative, const Attributes& attributes = {});
  void text(std::string_view text);   // escaped
  void raw(std::string_view markup);  // trusted and balanced: inline SVG, the style sheet
  // The page around what was written: doctype, head with the style sheet, body.
  std::string page(std::string_view title, std::string_view style) const;

 private:
  void close();
  void start(std::string_view tag, const Attributes& attributes);
  std::string out_;
  std::vector<std::string> stack_;
};

// Empty when every tag of `html` is closed in order, else the first problem: for tests.
std::string check_balanced(std::string_view html);

}  // namespace fewstep::eval
