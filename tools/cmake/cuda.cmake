# The CUDA toolkit and limbeck_torch_cuda: what liblimbeck_cuda.so, and nothing else, is built on.
# A machine without a GPU and without a driver compiles it too.

if(NOT DEFINED ENV{CUDA_HOME})
  if(CUDAToolkit_ROOT)
    set(ENV{CUDA_HOME} "${CUDAToolkit_ROOT}")
  elseif(_venv_site AND EXISTS "${_venv_site}/nvidia/cu13/bin/nvcc")
    set(ENV{CUDA_HOME} "${_venv_site}/nvidia/cu13")
  endif()
endif()
if(DEFINED ENV{CUDA_HOME})
  if(NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER "$ENV{CUDA_HOME}/bin/nvcc")
  endif()
  set(CUDAToolkit_ROOT "$ENV{CUDA_HOME}")
  set(CUDA_TOOLKIT_ROOT_DIR "$ENV{CUDA_HOME}")
endif()

# Named here, or torch's package looks for a GPU to read them from and stops where there is none.
if(NOT DEFINED ENV{TORCH_CUDA_ARCH_LIST} AND NOT DEFINED TORCH_CUDA_ARCH_LIST)
  set(TORCH_CUDA_ARCH_LIST "8.0;9.0;10.0;12.0+PTX")
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "LibTorch has CUDA but no nvcc was found: run tools/setup, set CUDA_HOME, or configure with "
                      "-DLIMBECK_CUDA=OFF")
endif()
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know yet that nvcc can
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)  # not before: CMake's probe of the compiler would trip over it
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
# Torch's package turns TORCH_CUDA_ARCH_LIST into compiler flags and warns when CMake has a list of its own.
unset(CMAKE_CUDA_ARCHITECTURES)
unset(CMAKE_CUDA_ARCHITECTURES CACHE)
# The wheel has no libkineto, which only static builds of torch need; a name spares the user a warning about it.
set(kineto_LIBRARY "${LIMBECK_TORCH_LIB_DIR}/libc10.so")
find_package(Torch REQUIRED PATHS "${LIMBECK_TORCH_LIB_DIR}/../share/cmake/Torch" NO_DEFAULT_PATH)
set(CMAKE_CUDA_ARCHITECTURES OFF)
# One intermediate code for all generations, that of the oldest, as ours asks for nothing newer: nvcc's front half runs
# once instead of once for each of them, which halves the time of a .cu file.
string(REGEX MATCHALL "sm_[0-9]+[a-z]*" _generations "${CMAKE_CUDA_FLAGS}")
if(_generations AND NOT _generations MATCHES "[0-9][a-z]")  # sm_90a has code of its own
  list(SORT _generations COMPARE NATURAL)
  list(GET _generations 0 _oldest)
  string(REPLACE "sm_" "compute_" _oldest "${_oldest}")
  if(CMAKE_CUDA_FLAGS MATCHES "code=compute_")
    list(APPEND _generations "${_oldest}")
  endif()
  list(JOIN _generations "," _codes)
  string(REGEX REPLACE "-gencode +[^ ]+ *" "" CMAKE_CUDA_FLAGS "${CMAKE_CUDA_FLAGS}")
  string(APPEND CMAKE_CUDA_FLAGS " -gencode arch=${_oldest},code=[${_codes}]")
endif()

add_library(limbeck_torch_cuda INTERFACE)
# Kept even where no symbol of libtorch_cuda is used: loading liblimbeck_cuda.so must bring CUDA tensors into the program.
target_link_libraries(limbeck_torch_cuda INTERFACE limbeck::torch CUDA::cudart
  "-Wl,--push-state,--no-as-needed,${LIMBECK_TORCH_LIB_DIR}/libtorch_cuda.so,--pop-state"
  "${LIMBECK_TORCH_LIB_DIR}/libc10_cuda.so")

# What liblimbeck_nccl.so is compiled with; NCCL itself is linked to libtorch_cuda.
find_path(LIMBECK_NCCL_INCLUDE_DIR nccl.h HINTS "$ENV{NCCL_HOME}/include" "${_venv_site}/nvidia/nccl/include"
  "${LIMBECK_TORCH_LIB_DIR}/../../nvidia/nccl/include" "$ENV{CUDA_HOME}/include")
mark_as_advanced(LIMBECK_NCCL_INCLUDE_DIR)
if(NOT LIMBECK_NCCL_INCLUDE_DIR)
  message(STATUS "nccl.h was not found: liblimbeck_nccl.so (several ranks on GPUs) is left out; set NCCL_HOME to have it")
endif()
