// The program as a user meets it: surface, exit codes, what goes to stdout and what to stderr.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>

#include "src/base/error.h"
#include "src/base/files.h"
#include "src/base/text.h"

namespace fewstep {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

struct Result {
  int code = -1;
  std::string out, err;
};

class Cli : public testing::Test {
 protected:
  Cli() : folder_(fs::temp_directory_path() / fmt::format("fewstep_cli_{}", ::getpid())) {
    fs::create_directories(folder_);
  }
  ~Cli() override { fs::remove_all(folder_); }

  // Through a shell: `arguments` may redirect.
  Result run(const std::string& arguments) const {
    const fs::path err = folder_ / "stderr";
    FILE* pipe = ::popen(
        fmt::format("cd '{}' && '{}' {} 2>'{}'", folder_.string(), FEWSTEP_BINARY, arguments, err.string()).c_str(),
        "r");
    Result result;
    char buffer[4096];
    for (size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) result.out.append(buffer, n);
    const int status = ::pclose(pipe);
    result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    result.err = read_text(err);
    return result;
  }
  void write(const std::string& name, const std::string& text) const { std::ofstream(folder_ / name) << text; }

  const fs::path folder_;
};

// "  --log LEVEL   ..." -> "--log"; "  CONFIG TEXT REQUIRED ..." -> "CONFIG"; "  train   ..." -> "train".
std::vector<std::string> section(const std::string& help, const std::string& title) {
  std::vector<std::string> names;
  bool inside = false;
  for (const std::string& line : split(help, '\n')) {
    static const std::regex kTitle("^[A-Za-z].*:$"), kItem("^  (\\S+)(?: .*)?$");
    std::smatch match;
    if (std::regex_match(line, kTitle))
      inside = line == title + ":";
    else if (inside && std::regex_match(line, match, kItem))
      names.push_back(match[1]);
  }
  return names;
}

class Surface : public Cli {
 protected:
  // One line a command: its name, arguments and options; then the commands below it.
  std::string describe(const std::string& command) const {
    const Result help = run(command + " --help");
    EXPECT_EQ(help.code, 0) << command << help.err;
    std::vector<std::string> words;
    for (const char* title : {"Positionals", "Options"})
      for (const std::string& name : section(help.out, title)) {
        const std::string own = split(name, ',').back();
        if (own != "--help" && own != "--help-all") words.push_back(own);
      }
    std::string out = fmt::format("fewstep{}:{}{}\n", command, words.empty() ? "" : " ", fmt::join(words, " "));
    for (const std::string& sub : section(help.out, "Subcommands")) out += describe(command + " " + sub);
    return out;
  }
};

TEST_F(Surface, IsFrozen) {
  const fs::path expected = fs::path(FEWSTEP_SOURCE_DIR) / "tests/tools/cli_surface.txt";
  const std::string surface = describe("");
  if (std::getenv("FEWSTEP_UPDATE")) std::ofstream(expected) << surface;
  EXPECT_EQ(surface, read_text(expected))
      << "An option or command came or went. If that is meant: FEWSTEP_UPDATE=1, and say so in CHANGELOG.md";
}

TEST_F(Surface, EveryCommandHasExamples) {
  for (const std::string& command : section(run("--help").out, "Subcommands"))
    EXPECT_THAT(run(command + " --help").out, HasSubstr("fewstep " + command + " ")) << "no example in the footer";
}

TEST_F(Cli, VersionAndHelp) {
  const Result version = run("--version");
  EXPECT_EQ(version.code, 0);
  EXPECT_THAT(version.out, testing::MatchesRegex("fewstep [0-9.]+ \\(([0-9a-f]+(-dirty)?|unknown)\\)\n"));
  EXPECT_THAT(version.err, IsEmpty());
  EXPECT_EQ(run("--help").code, 0);
  EXPECT_EQ(run("config show --help").code, 0);
}

TEST_F(Cli, UsageErrorsAreTwo) {
  for (const char* arguments : {"", "config", "config show", "train", "--nonsense", "config show x.yaml --nonsense",
                                "train x.yaml --nproc 0"}) {
    SCOPED_TRACE(arguments);
    const Result r = run(arguments);
    EXPECT_EQ(r.code, 2);
    EXPECT_THAT(r.out, IsEmpty());
    EXPECT_THAT(r.err, StartsWith("fewstep: "));
    EXPECT_THAT(r.err, HasSubstr(" --help` for the arguments"));
  }
  EXPECT_THAT(run("--log debug trian x.yaml").err, HasSubstr("unknown subcommand: 'trian' is not one of train, "));
  EXPECT_THAT(run("config shwo x.yaml").err, HasSubstr("(did you mean 'show'?)\nRun `fewstep config --help`"));
  const Result level = run("--log loud config explain");
  EXPECT_EQ(level.code, 2);
  EXPECT_THAT(level.err, HasSubstr("'loud' is not one of debug, info, warning, error"));
}

TEST_F(Cli, ConfigShowIsYamlThatShowsTheSame) {
  write("base.yaml", "name: t\ndata: {kind: fashion_mnist}\ntrainer: {kind: vq_tokenizer}\n");
  write("f.yaml", "base: base.yaml\nseed: 3\nloop: {steps: 5}\n");
  const Result once = run("config show f.yaml loop.steps=7 > once.yaml; cat once.yaml");
  EXPECT_EQ(once.code, 0);
  EXPECT_THAT(once.err, IsEmpty());
  EXPECT_THAT(once.out, HasSubstr("\nseed: 3\n"));
  EXPECT_THAT(once.out, HasSubstr("\nloop:\n  steps: 7\n"));
  EXPECT_EQ(run("config show once.yaml").out, once.out);
  const Result check = run("config check f.yaml");
  EXPECT_EQ(check.code, 0);
  EXPECT_EQ(check.out, "f.yaml: ok (run config)\n");
}

TEST_F(Cli, ConfigCheckListsEveryProblem) {
  write("f.yaml", "sede: 3\nloop: {steps: 0}\ndata: {kind: fashion_mnist}\ntrainer: {kind: vq_tokenizr}\n");
  const Result r = run("config check f.yaml threads=-1");
  EXPECT_EQ(r.code, 2);
  EXPECT_THAT(r.out, IsEmpty());
  EXPECT_THAT(
      r.err,
      StartsWith(
          "f.yaml:1:1: missing key 'name'\nf.yaml:1:1: unknown key 'sede' (did you mean 'seed'?)\n"
          "f.yaml:2:15: loop.steps: 0 must be at least 1\nf.yaml:4:17: trainer.kind: 'vq_tokenizr' is not one of "));
  EXPECT_THAT(r.err, testing::EndsWith("command line:1:9: threads: -1 must be at least 0\nfewstep: 5 problems\n"));
}

TEST_F(Cli, ConfigExplain) {
  const Result all = run("config explain");
  EXPECT_EQ(all.code, 0);
  for (const char* text : {"name: string", "required: ", "kind: vq_tokenizer", "kind: fashion_mnist"})
    EXPECT_THAT(all.out, HasSubstr(text));
  for (const char* root : {"run", "eval", "experiment"})
    EXPECT_EQ(run(std::string("config explain ") + root).code, 0) << root;
  write("rows.yaml", "name: x\nrows: []\n");
  EXPECT_EQ(run("config check rows.yaml").out, "rows.yaml: ok (experiment config)\n");
  EXPECT_THAT(run("config explain vq_tokenizer").out, StartsWith("kind: vq_tokenizer\n"));
  const Result sample = run("config explain sample");  // no file has it at its root: what `fewstep sample` takes as key=value
  EXPECT_EQ(sample.code, 0);
  for (const char* key : {"guidance: float", "decoder: ar|jacobi|sjd|sjd2|zipar", "coupling: none|maximal|gumbel"})
    EXPECT_THAT(sample.out, HasSubstr(key));
  EXPECT_THAT(run("config explain vq_tokenizr").err, HasSubstr("did you mean 'vq_tokenizer'?"));
}

TEST_F(Cli, ShippedConfigsAreValid) {
  int files = 0;
  for (const char* top : {"configs", "experiments"})
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(FEWSTEP_SOURCE_DIR) / top)) {
      // A base that others are layered over need not be complete; paper.yaml holds a publication's numbers.
      const fs::path& file = entry.path();
      if (file.extension() != ".yaml" || file.stem() == "base" || file.stem() == "paper") continue;
      const Result r = run("config check '" + file.string() + "'");
      EXPECT_EQ(r.code, 0) << r.err;
      ++files;
    }
  EXPECT_GT(files, 0);
}

TEST_F(Cli, FilesThatCannotBeReadOrWritten) {
  EXPECT_EQ(run("config show nowhere.yaml").code, 2);
  EXPECT_EQ(run("config show nowhere.yaml").err, "fewstep: nowhere.yaml: cannot be read: No such file or directory\n");
  EXPECT_THAT(run("--log debug config show nowhere.yaml").err,
              HasSubstr("thrown as fewstep::ConfigError, exit code 2"));
  EXPECT_EQ(run("model info nowhere").code, 3);
  if (fs::exists("/dev/full"))
    for (const char* arguments : {"config explain >/dev/full", "--version >/dev/full"}) {
      const Result r = run(arguments);
      EXPECT_EQ(r.code, 3) << arguments;
      EXPECT_THAT(r.err, HasSubstr("No space left on device"));
    }
}

}  // namespace
}  // namespace fewstep
