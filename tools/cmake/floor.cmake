# How a floor of the house (kernels, modules, trainer), a program and a test binary are built.

# A cache that is there already is used; an empty one makes a first build a twelfth longer, and most are the only one.
find_program(LIMBECK_CCACHE ccache)
if(LIMBECK_CCACHE)
  execute_process(COMMAND "${LIMBECK_CCACHE}" -k cache_dir OUTPUT_VARIABLE _cache OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(LIMBECK_CCACHE AND IS_DIRECTORY "${_cache}")
  # The sloppiness is what GCC's precompiled headers need; base_dir and no hash_dir let checkouts share the cache. What a
  # file includes is known from the compiler's own list (depend), and not from preprocessing everything once more.
  set(_ccache "${CMAKE_COMMAND}" -E env "CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime"
      CCACHE_NOHASHDIR=1 CCACHE_DEPEND=1 "CCACHE_BASEDIR=${PROJECT_SOURCE_DIR}" "${LIMBECK_CCACHE}")
  set(CMAKE_CXX_COMPILER_LAUNCHER ${_ccache})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${_ccache})
endif()
foreach(_linker mold lld)
  find_program(LIMBECK_LINKER_${_linker} NAMES ${_linker} ld.${_linker})
  mark_as_advanced(LIMBECK_LINKER_${_linker})
  if(LIMBECK_LINKER_${_linker} AND NOT _linker_found)
    add_link_options(-fuse-ld=${_linker})
    set(_linker_found ON)
  endif()
endforeach()

if(LIMBECK_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined> $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize=vptr>
    $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=undefined> $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=address,undefined)
endif()

# -O1 in place of CMake's -O3, which takes the compiler twice as long for loops that are not here: those over values and
# over text ask for more themselves (limbeck_part).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_FLAGS_RELEASE STREQUAL "-O3 -DNDEBUG")
  set(CMAKE_CXX_FLAGS_RELEASE "-O1 -DNDEBUG")
endif()

# What our own code is compiled with; never seen by those who build on an installed Limbeck.
# No -march: one build serves every x86-64 machine, and wider instructions are chosen at run time. No -ffast-math.
add_library(limbeck_options INTERFACE)
target_compile_options(limbeck_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wnon-virtual-dtor;-Werror;-fvisibility-inlines-hidden>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(limbeck_options INTERFACE
    # Functions of one shared library may be inlined into each other though they are exported.
    $<$<COMPILE_LANGUAGE:CXX>:-fno-semantic-interposition>
    # Lets ccache cache what uses a precompiled header.
    $<$<COMPILE_LANGUAGE:CXX>:-fpch-preprocess>
    # A product and a sum make two roundings, on every machine.
    $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>
    # The compiler would look for memory to free every time the precompiled header is read, and find none.
    "$<$<COMPILE_LANGUAGE:CXX>:SHELL:--param ggc-min-expand=1000 --param ggc-min-heapsize=4000000>")
endif()
# at::parallel_for is serial in files compiled without OpenMP. The runtime must be the one libtorch carries: a second
# one would have a thread pool of its own.
find_package(OpenMP REQUIRED COMPONENTS CXX)
file(GLOB _torch_gomp "${LIMBECK_TORCH_LIB_DIR}/libgomp*.so*")
if(_torch_gomp)
  list(GET _torch_gomp 0 LIMBECK_OPENMP_RUNTIME)
else()
  set(LIMBECK_OPENMP_RUNTIME OpenMP::OpenMP_CXX)
endif()
separate_arguments(_openmp_flags UNIX_COMMAND "${OpenMP_CXX_FLAGS}")
target_compile_options(limbeck_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${_openmp_flags}>")
target_link_libraries(limbeck_options INTERFACE "${LIMBECK_OPENMP_RUNTIME}")
target_include_directories(limbeck_options INTERFACE "${PROJECT_SOURCE_DIR}")
target_link_libraries(limbeck_options INTERFACE limbeck::torch Threads::Threads)
# As LibTorch itself, in every configuration: without it some classes of its headers have members that the library's lack.
target_compile_definitions(limbeck_options INTERFACE $<$<NOT:$<CONFIG:Release>>:NDEBUG>)
add_library(limbeck_torch ALIAS limbeck::torch)

# One precompiled header for modules, trainer, programs and tests: 20 s once instead of 7 to 10 s a file.
# It fits only what is compiled with the same flags: everything is -fPIC, programs too (see limbeck_program).
add_library(limbeck_pch OBJECT "${CMAKE_CURRENT_LIST_DIR}/pch.cpp")
target_link_libraries(limbeck_pch PRIVATE limbeck_options nlohmann_json::nlohmann_json)
# GCC 12 dies (IPA pass: cp) where a header compiled at -O1 is used at -O2; the other way round it does not.
target_compile_options(limbeck_pch PRIVATE $<$<CONFIG:Release>:-O2>)
target_precompile_headers(limbeck_pch PRIVATE <torch/nn/module.h> <ATen/ATen.h> <fmt/format.h> <fmt/ranges.h>
  <nlohmann/json.hpp> <filesystem> <map> <optional> <string> <vector>)

# Every file pays for the templates which torch's headers leave to be instantiated at its end (three seconds with the
# precompiled header), and compiles what it takes of torch, JSON and the containers again. Compiled 70 at a time, 70
# files pay once (40 of tests, whose files would be one unit that both ends the build and keeps one core). The preset dev, for those who change one file again and again, compiles each by itself.
option(LIMBECK_UNITY "Compile several files at a time" ON)

function(_limbeck_unity target batch)
  set_target_properties(${target} PROPERTIES UNITY_BUILD ${LIMBECK_UNITY} UNITY_BUILD_BATCH_SIZE ${batch})
  if(LIMBECK_UNITY)  # files that are included look like headers to this warning
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-subobject-linkage>)
  endif()
endfunction()

# limbeck_floor(NAME [PCH] SOURCES ... LINK ... PRIVATE_LINK ...)
# The library liblimbeck_NAME.so, installed and exported as Limbeck::NAME.
# Shared, so that a plug-in and the program see the same registries.
function(limbeck_floor name)
  cmake_parse_arguments(F "PCH" "" "SOURCES;LINK;PRIVATE_LINK" ${ARGN})
  add_library(limbeck_${name} SHARED ${F_SOURCES})
  add_library(Limbeck::${name} ALIAS limbeck_${name})
  set_target_properties(limbeck_${name} PROPERTIES DEFINE_SYMBOL "" EXPORT_NAME ${name}
    INSTALL_RPATH "$ORIGIN;${LIMBECK_TORCH_LIB_DIR}")
  target_compile_features(limbeck_${name} PUBLIC cxx_std_20)
  # A symbol that nothing defines fails here, at the link, and not in a run.
  if(NOT LIMBECK_SANITIZE)
    target_link_options(limbeck_${name} PRIVATE "LINKER:-z,defs")
  endif()
  target_include_directories(limbeck_${name} PUBLIC
    "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>" "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/limbeck>")
  target_link_libraries(limbeck_${name} PUBLIC limbeck::torch ${F_LINK}
    PRIVATE $<BUILD_INTERFACE:limbeck_options> ${F_PRIVATE_LINK})
  if(F_PCH)
    target_precompile_headers(limbeck_${name} REUSE_FROM limbeck_pch)
  endif()
  _limbeck_unity(limbeck_${name} 70)
  install(TARGETS limbeck_${name} EXPORT LimbeckTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endfunction()

# limbeck_part(FLOOR NAME OPTIMIZE FLAG SOURCES ...): files of a floor that are optimised more than the others.
function(limbeck_part floor name)
  cmake_parse_arguments(F "" "OPTIMIZE" "SOURCES" ${ARGN})
  add_library(limbeck_${name} OBJECT ${F_SOURCES})
  target_link_libraries(limbeck_${name} PRIVATE limbeck_options $<TARGET_PROPERTY:limbeck_${floor},LINK_LIBRARIES>)
  target_precompile_headers(limbeck_${name} REUSE_FROM limbeck_pch)
  target_compile_options(limbeck_${name} PRIVATE $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:${F_OPTIMIZE}>)
  _limbeck_unity(limbeck_${name} 70)
  target_sources(limbeck_${floor} PRIVATE $<TARGET_OBJECTS:limbeck_${name}>)
endfunction()

# limbeck_program(NAME [PCH] SOURCES ... LINK ...): an executable that finds our libraries by rpath.
function(limbeck_program name)
  cmake_parse_arguments(F "PCH" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${F_SOURCES})
  target_link_libraries(${name} PRIVATE limbeck_options ${F_LINK})
  # CMake would choose -fPIE for programs, and the precompiled header made with -fPIC would be refused.
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE OFF
    INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR};${LIMBECK_TORCH_LIB_DIR}")
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fPIC>)
  _limbeck_unity(${name} 40)
  if(F_PCH)
    target_precompile_headers(${name} REUSE_FROM limbeck_pch)
  endif()
endfunction()
