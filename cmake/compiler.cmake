# Flags that every target shares (the precompiled header demands that they are equal), ccache, lld, sanitizers.
add_compile_options(-Wall -Wextra -Wshadow -Werror -fno-semantic-interposition)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # False positives of GCC 12 inside std::string and ATen's inlined headers.
  add_compile_options(-Wno-restrict -Wno-stringop-overflow -Wno-array-bounds -Wno-maybe-uninitialized -Wno-dangling-pointer)
endif()

if(FEWSTEP_SANITIZE)
  add_compile_options(-fsanitize=${FEWSTEP_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${FEWSTEP_SANITIZE})
endif()

find_program(CCACHE ccache)
if(CCACHE AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} ${CCACHE})
  add_compile_options($<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
endif()
find_program(LLD ld.lld)
if(LLD)
  add_link_options(-fuse-ld=lld)
endif()
