#include "src/pipelines/components.h"

#include "src/base/files.h"
#include "src/models/model_folder.h"

namespace fewstep::pipelines {
namespace fs = std::filesystem;

void link_component(const fs::path& from, const fs::path& to, const std::string& name) {
  const fs::path source = from / name, target = to / name;
  std::error_code error;
  if (!fs::is_directory(source))
    fail<DataError>("{}: the frozen component is gone; it is needed to save a model that can be used by itself",
                    source.string());
  if (fs::equivalent(source, target, error)) return;
  make_directories(target);
  for (const fs::path& file : models::files_below(source))
    models::place_file(fs::canonical(source / file), target / file);  // caches hold symbolic links
}

}  // namespace fewstep::pipelines
