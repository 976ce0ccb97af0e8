# limbeck::torch: the headers of LibTorch, libtorch_cpu and libc10. Used by this build and, installed beside
# LimbeckConfig.cmake, by projects that build on Limbeck.
#
# Not torch's own package: that one links libtorch_cuda and wants a CUDA toolkit whenever torch was built with CUDA,
# while our core links the CPU library alone (a program starts at 125 MB resident instead of 480 MB).
# Searched: LIMBECK_TORCH_PREFIX, Torch_DIR, CMAKE_PREFIX_PATH, in that order of preference.

set(_torch_hints "")
if(LIMBECK_TORCH_PREFIX)
  list(APPEND _torch_hints "${LIMBECK_TORCH_PREFIX}/include")
endif()
if(Torch_DIR)
  list(APPEND _torch_hints "${Torch_DIR}/../../../include")
endif()
find_path(LIMBECK_TORCH_INCLUDE_DIR ATen/core/Tensor.h HINTS ${_torch_hints})
mark_as_advanced(LIMBECK_TORCH_INCLUDE_DIR)
if(NOT LIMBECK_TORCH_INCLUDE_DIR)
  message(FATAL_ERROR "LibTorch was not found: run tools/setup, or name yours with -DCMAKE_PREFIX_PATH=/path/to/libtorch")
endif()
get_filename_component(_torch_root "${LIMBECK_TORCH_INCLUDE_DIR}" DIRECTORY)
set(LIMBECK_TORCH_LIB_DIR "${_torch_root}/lib")

set(LIMBECK_TORCH_VERSION "")
foreach(_header headeronly/version.h csrc/api/include/torch/version.h version.h)
  if(NOT LIMBECK_TORCH_VERSION AND EXISTS "${LIMBECK_TORCH_INCLUDE_DIR}/torch/${_header}")
    file(STRINGS "${LIMBECK_TORCH_INCLUDE_DIR}/torch/${_header}" _lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH)")
    if(_lines MATCHES "MAJOR ([0-9]+).*MINOR ([0-9]+).*PATCH ([0-9]+)")
      set(LIMBECK_TORCH_VERSION "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}.${CMAKE_MATCH_3}")
    endif()
  endif()
endforeach()

if(NOT TARGET limbeck::torch)
  add_library(limbeck::torch INTERFACE IMPORTED GLOBAL)
  set_target_properties(limbeck::torch PROPERTIES
    # Imported, so these are system headers and their warnings stay out of ours.
    INTERFACE_INCLUDE_DIRECTORIES "${LIMBECK_TORCH_INCLUDE_DIR};${LIMBECK_TORCH_INCLUDE_DIR}/torch/csrc/api/include"
    INTERFACE_LINK_LIBRARIES "${LIMBECK_TORCH_LIB_DIR}/libtorch_cpu.so;${LIMBECK_TORCH_LIB_DIR}/libc10.so")
endif()
