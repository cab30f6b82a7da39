// numpy's .npz files (a zip of .npy arrays), as other tools keep statistics of features in. Never unpickles.
#pragma once
#include <filesystem>
#include <map>
#include <string>

#include "src/tensor/tensor.h"

namespace fewstep::io {

// float64, float32, int64, int32, uint8 and bool arrays; others (text, objects) are left out, with their names in
// `skipped`. DataError with path, array and reason.
TensorMap read_npz(const std::filesystem::path& path, std::vector<std::string>* skipped = nullptr);
void write_npz(const std::filesystem::path& path, const TensorMap& arrays);  // as numpy.savez: not compressed

}  // namespace fewstep::io
