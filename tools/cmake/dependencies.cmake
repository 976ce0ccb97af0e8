# Everything Limbeck builds on, found in one place.
#
# Order of preference: what the user names (-DCMAKE_PREFIX_PATH, -DLIMBECK_TORCH_PREFIX, CUDA_HOME), then the wheels
# that tools/setup put into .venv, or those of LIMBECK_VENV.

if(DEFINED ENV{LIMBECK_VENV})
  file(GLOB _venv_site LIST_DIRECTORIES true "$ENV{LIMBECK_VENV}/lib/python3*/site-packages")
  set(LIMBECK_PYTHON "$ENV{LIMBECK_VENV}/bin/python")
else()
  file(GLOB _venv_site LIST_DIRECTORIES true "${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages")
  set(LIMBECK_PYTHON "${PROJECT_SOURCE_DIR}/.venv/bin/python")
endif()
if(_venv_site)
  list(GET _venv_site 0 _venv_site)
  list(APPEND CMAKE_PREFIX_PATH "${_venv_site}/torch")
endif()

include(${CMAKE_CURRENT_LIST_DIR}/torch.cmake)
message(STATUS "LibTorch ${LIMBECK_TORCH_VERSION} in ${LIMBECK_TORCH_LIB_DIR}")
if(NOT LIMBECK_TORCH_VERSION VERSION_GREATER_EQUAL 2.11 OR NOT LIMBECK_TORCH_VERSION VERSION_LESS 2.12)
  message(WARNING "Limbeck is tested with LibTorch 2.11, and this is ${LIMBECK_TORCH_VERSION}")
endif()

if(LIMBECK_CUDA AND NOT EXISTS "${LIMBECK_TORCH_LIB_DIR}/libtorch_cuda.so")
  message(STATUS "This LibTorch was built without CUDA: liblimbeck_cuda.so is left out")
  set(LIMBECK_CUDA OFF)
endif()
if(LIMBECK_CUDA)
  include(${CMAKE_CURRENT_LIST_DIR}/cuda.cmake)
endif()

find_package(Boost REQUIRED COMPONENTS program_options)
find_package(nlohmann_json 3.9 REQUIRED)
find_package(Threads REQUIRED)

# Debian's RE2 brings no CMake package. Its headers show in none of ours, so an installed Limbeck needs the library alone.
find_path(LIMBECK_RE2_INCLUDE_DIR re2/re2.h)
find_library(LIMBECK_RE2_LIBRARY re2)
if(NOT LIMBECK_RE2_INCLUDE_DIR OR NOT LIMBECK_RE2_LIBRARY)
  message(FATAL_ERROR "RE2 is missing (re2/re2.h, libre2.so): run tools/setup, or install libre2-dev")
endif()
add_library(limbeck_re2 INTERFACE)
target_link_libraries(limbeck_re2 INTERFACE "${LIMBECK_RE2_LIBRARY}")
if(NOT LIMBECK_RE2_INCLUDE_DIR STREQUAL "/usr/include")
  target_include_directories(limbeck_re2 SYSTEM INTERFACE "${LIMBECK_RE2_INCLUDE_DIR}")
endif()
# Tokenizers: the regular expressions of Hugging Face's (Oniguruma), Unicode's normal forms and categories.
foreach(_text_library onig:oniguruma.h utf8proc:utf8proc.h)
  string(REPLACE ":" ";" _text_library "${_text_library}")
  list(GET _text_library 0 _name)
  list(GET _text_library 1 _header)
  find_path(LIMBECK_${_name}_INCLUDE ${_header} REQUIRED)
  find_library(LIMBECK_${_name}_LIBRARY ${_name} REQUIRED)
  mark_as_advanced(LIMBECK_${_name}_INCLUDE LIMBECK_${_name}_LIBRARY)
  add_library(limbeck::${_name} UNKNOWN IMPORTED)
  set_target_properties(limbeck::${_name} PROPERTIES IMPORTED_LOCATION "${LIMBECK_${_name}_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${LIMBECK_${_name}_INCLUDE}")
endforeach()
