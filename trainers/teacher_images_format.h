// Names inside a file of teacher images, shared by its writer and its reader.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/io/hdf5.h"
#include "trainers/teacher_images.h"

namespace fewstep {

inline constexpr std::string_view kTeacherImagesFormat = "fewstep teacher images 1";
std::string teacher_group(at::IntArrayRef size);  // [C, H, W] -> "CxHxW"
TeacherFacts read_teacher_facts(const io::H5File& file);                       // DataError: another kind of file
std::vector<std::vector<int64_t>> read_teacher_sizes(const io::H5File& file);  // [C, H, W] each

}  // namespace fewstep
