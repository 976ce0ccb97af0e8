# One floor of the house = one shared library. Shared, so that a plug-in and the program see the same registries.

find_program(LIMBECK_CCACHE ccache)
if(LIMBECK_CCACHE)
  # The sloppiness is what GCC's precompiled headers need; base_dir and no hash_dir let checkouts share the cache.
  set(_ccache "${CMAKE_COMMAND}" -E env "CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime"
      CCACHE_NOHASHDIR=1 "CCACHE_BASEDIR=${PROJECT_SOURCE_DIR}" "${LIMBECK_CCACHE}")
  set(CMAKE_CXX_COMPILER_LAUNCHER ${_ccache})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${_ccache})
endif()
foreach(_linker mold lld)
  find_program(LIMBECK_LINKER_${_linker} NAMES ${_linker} ld.${_linker})
  if(LIMBECK_LINKER_${_linker} AND NOT _linker_found)
    add_link_options(-fuse-ld=${_linker})
    set(_linker_found ON)
  endif()
endforeach()

add_library(limbeck_options INTERFACE)
target_compile_options(limbeck_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Werror -fvisibility-inlines-hidden>)
target_include_directories(limbeck_options INTERFACE "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>")
target_link_libraries(limbeck_options INTERFACE limbeck_torch Threads::Threads)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # The wheel's headers trip these inside our templates.
  target_compile_options(limbeck_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>)
endif()
if(LIMBECK_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize=vptr)
  add_link_options(-fsanitize=address,undefined)
endif()

# One precompiled header for modules, trainer and tests: 20 s once instead of 7 to 10 s a file.
file(WRITE "${CMAKE_BINARY_DIR}/pch.cpp" "// the shared precompiled header is made while this file is compiled\n")
add_library(limbeck_pch OBJECT "${CMAKE_BINARY_DIR}/pch.cpp")
target_link_libraries(limbeck_pch PRIVATE limbeck_options)
target_precompile_headers(limbeck_pch PRIVATE <torch/nn/module.h> <ATen/ATen.h> <fmt/format.h> <fmt/ranges.h>
  <nlohmann/json.hpp> <filesystem> <map> <optional> <string> <vector>)

# limbeck_floor(NAME SOURCES ... LINK ...): the library liblimbeck_NAME.so
function(limbeck_floor name)
  cmake_parse_arguments(F "PCH" "" "SOURCES;LINK;PRIVATE_LINK" ${ARGN})
  add_library(limbeck_${name} SHARED ${F_SOURCES})
  add_library(Limbeck::${name} ALIAS limbeck_${name})
  set_target_properties(limbeck_${name} PROPERTIES DEFINE_SYMBOL "" EXPORT_NAME ${name}
    BUILD_RPATH "${LIMBECK_TORCH_LIB_DIR}" INSTALL_RPATH "$ORIGIN;${LIMBECK_TORCH_LIB_DIR}")
  target_link_libraries(limbeck_${name} PUBLIC limbeck_options ${F_LINK} PRIVATE ${F_PRIVATE_LINK})
  if(F_PCH)
    target_precompile_headers(limbeck_${name} REUSE_FROM limbeck_pch)
  endif()
endfunction()

# limbeck_program(NAME SOURCES ... LINK ...): an executable that finds libtorch and our libraries by rpath
function(limbeck_program name)
  cmake_parse_arguments(F "PCH" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${F_SOURCES})
  target_link_libraries(${name} PRIVATE limbeck_options ${F_LINK})
  set_target_properties(${name} PROPERTIES BUILD_RPATH "${LIMBECK_TORCH_LIB_DIR};${CMAKE_LIBRARY_OUTPUT_DIRECTORY}"
    INSTALL_RPATH "$ORIGIN/../lib;${LIMBECK_TORCH_LIB_DIR}")
  if(F_PCH)
    target_precompile_headers(${name} REUSE_FROM limbeck_pch)
  endif()
endfunction()
