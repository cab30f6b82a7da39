# fewstep_library(name [TORCH] SOURCES ... LINK ...): one static library per folder. TORCH: sees ATen, shares the
# precompiled header. Every include is written from the repository root.
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(OpenSSL REQUIRED)

if(FEWSTEP_PCH)
  file(WRITE "${CMAKE_BINARY_DIR}/pch.cpp" "// carrier of the precompiled header\n")
  add_library(fewstep_pch OBJECT "${CMAKE_BINARY_DIR}/pch.cpp")
  target_link_libraries(fewstep_pch PRIVATE fewstep_torch fmt::fmt)
  target_include_directories(fewstep_pch PRIVATE "${CMAKE_SOURCE_DIR}")
  target_precompile_headers(fewstep_pch PRIVATE "${CMAKE_SOURCE_DIR}/src/tensor/pch.h")
endif()

function(fewstep_use_torch target)
  target_link_libraries(${target} PUBLIC fewstep_torch)
  get_target_property(_type ${target} TYPE)
  if(_type STREQUAL "EXECUTABLE")
    # An executable would get -fPIE, and the precompiled header was made with -fPIC: they must be equal.
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${target} PRIVATE -fPIC)
  endif()
  if(FEWSTEP_PCH)
    target_precompile_headers(${target} REUSE_FROM fewstep_pch)
  endif()
endfunction()

function(fewstep_library name)
  cmake_parse_arguments(arg "TORCH" "" "SOURCES;LINK" ${ARGN})
  add_library(${name} STATIC ${arg_SOURCES})
  if(FEWSTEP_UNITY)
    # Groups of four stay below 30 s each. A name of one file may shadow that of another in its group: no problem there.
    set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 4)
    target_compile_options(${name} PRIVATE -Wno-shadow)
  endif()
  target_include_directories(${name} PUBLIC "${CMAKE_SOURCE_DIR}")
  target_link_libraries(${name} PUBLIC ${arg_LINK} fmt::fmt)
  if(arg_TORCH)
    fewstep_use_torch(${name})
  endif()
endfunction()

# fewstep_test(name LABEL label [TORCH] SOURCES ... LINK ...): one GoogleTest binary, one ctest entry per test case.
function(fewstep_test name)
  cmake_parse_arguments(arg "TORCH" "LABEL" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_include_directories(${name} PRIVATE "${CMAKE_SOURCE_DIR}")
  target_compile_definitions(${name} PRIVATE FEWSTEP_SOURCE_DIR="${CMAKE_SOURCE_DIR}" FEWSTEP_BINARY="$<TARGET_FILE:fewstep>")
  target_link_libraries(${name} PRIVATE ${arg_LINK} GTest::gtest_main GTest::gmock)
  if(arg_TORCH)
    fewstep_use_torch(${name})
  endif()
  add_test(NAME ${name} COMMAND ${name})
  # Without these, idle OpenMP threads spin: on busy cores a test of 0.7 s was seen to take 26 s.
  set_tests_properties(${name} PROPERTIES LABELS "${arg_LABEL}" WORKING_DIRECTORY "${CMAKE_BINARY_DIR}" TIMEOUT 300
    ENVIRONMENT "OMP_WAIT_POLICY=passive;GOMP_SPINCOUNT=0")
endfunction()
