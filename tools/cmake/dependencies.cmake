# Everything Limbeck builds on, found in one place.
#
# Order of preference: what the user names (-DCMAKE_PREFIX_PATH, CUDA_HOME), then the wheels that tools/setup put
# into .venv. The CUDA 13 toolkit from wheels is accepted as a toolkit because tools/setup makes the links it lacks.

file(GLOB _venv_site LIST_DIRECTORIES true "${PROJECT_SOURCE_DIR}/.venv/lib/python3*/site-packages"
     "$ENV{LIMBECK_VENV}/lib/python3*/site-packages")
if(_venv_site)
  list(GET _venv_site 0 _venv_site)
  list(APPEND CMAKE_PREFIX_PATH "${_venv_site}/torch")
endif()

# TorchConfig.cmake looks for a toolkit as soon as torch was built with CUDA, and probes for a GPU unless told the targets.
if(NOT DEFINED ENV{CUDA_HOME} AND NOT CUDAToolkit_ROOT AND NOT CMAKE_CUDA_COMPILER)
  if(_venv_site AND EXISTS "${_venv_site}/nvidia/cu13/bin/nvcc")
    set(ENV{CUDA_HOME} "${_venv_site}/nvidia/cu13")
  endif()
endif()
if(DEFINED ENV{CUDA_HOME} AND NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER "$ENV{CUDA_HOME}/bin/nvcc")
  set(CUDAToolkit_ROOT "$ENV{CUDA_HOME}")
  set(CUDA_TOOLKIT_ROOT_DIR "$ENV{CUDA_HOME}")
endif()
if(NOT DEFINED ENV{TORCH_CUDA_ARCH_LIST} AND NOT DEFINED TORCH_CUDA_ARCH_LIST)
  set(TORCH_CUDA_ARCH_LIST "8.0;9.0;12.0")
endif()

find_package(Torch REQUIRED)

# The core links the CPU library alone: a program with libtorch_cuda starts at 480 MB resident, one without at 125 MB.
add_library(limbeck_torch INTERFACE)
add_library(limbeck::torch ALIAS limbeck_torch)
get_filename_component(LIMBECK_TORCH_LIB_DIR "${TORCH_LIBRARY}" DIRECTORY)
target_include_directories(limbeck_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
target_link_libraries(limbeck_torch INTERFACE "${LIMBECK_TORCH_LIB_DIR}/libtorch_cpu.so" "${LIMBECK_TORCH_LIB_DIR}/libc10.so")
# The fmt that libtorch carries; header only, so that no second fmt meets it in one process.
target_compile_definitions(limbeck_torch INTERFACE FMT_HEADER_ONLY=1)

find_package(Boost REQUIRED COMPONENTS program_options)
find_package(nlohmann_json 3.9 REQUIRED)
find_package(Threads REQUIRED)

# oneDNN (libdnnl-dev) gives float32-out half GEMMs, which ATen does not export (kernels/half_linear_cpu.cpp).
find_library(LIMBECK_DNNL_LIBRARY dnnl REQUIRED)
