# How tests are registered. ctest counts suites and files; tools/test_summary.py counts the cases in them.

# Tests run side by side, so idle OpenMP threads sleep instead of taking a core from the neighbour, and each has one thread but
# where it asks for more: of tensors as small as theirs a second one costs two to four times the processor's time. A Python that may not
# keep its bytecode compiles torch and transformers at every start: 10 s instead of 5. It is kept outside the source tree.
set(_limbeck_test_environment "OMP_WAIT_POLICY=passive" "OMP_NUM_THREADS=1" "PYTHONDONTWRITEBYTECODE="
  "PYTHONPYCACHEPREFIX=${CMAKE_BINARY_DIR}/bytecode" "LIMBECK_BUILD=${CMAKE_BINARY_DIR}"
  "LIMBECK_BIN=${CMAKE_RUNTIME_OUTPUT_DIRECTORY}/limbeck" "LIMBECK_SOURCE=${PROJECT_SOURCE_DIR}"
  "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1")
if(LIMBECK_SANITIZE)
  # libtorch keeps what it allocates while it is loaded, and is not instrumented itself.
  list(APPEND _limbeck_test_environment "ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0"
    "UBSAN_OPTIONS=print_stacktrace=1")
endif()

# limbeck_test(NAME [THREADS N] [LABELS ...] SOURCES ... LINK ...): the GoogleTest binary NAME; a suite that takes seconds is a
# test of ctest's own, ten short ones are one (list_suites.cmake). N threads where dividing work among them is looked at.
function(limbeck_test name)
  cmake_parse_arguments(F "" "THREADS" "LABELS;SOURCES;LINK" ${ARGN})
  limbeck_program(${name} PCH SOURCES ${F_SOURCES} "${PROJECT_SOURCE_DIR}/tests/support/test_main.cpp"
    LINK ${F_LINK} GTest::gtest)
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}/tests")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-Og>)  # the libraries are what must be fast
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # GCC bug 105651: in "literal" + std::string these see copies that cannot happen.
    target_compile_options(${name} PRIVATE -Wno-restrict -Wno-stringop-overflow -Wno-array-bounds -Wno-stringop-overread)
  endif()
  set(listed "${CMAKE_CURRENT_BINARY_DIR}/${name}_suites.cmake")
  set(environment "${_limbeck_test_environment}")
  if(F_THREADS)
    string(REPLACE "OMP_NUM_THREADS=1" "OMP_NUM_THREADS=${F_THREADS}" environment "${environment}")
  endif()
  set(properties "TIMEOUT 1200 LABELS [==[${F_LABELS}]==] ENVIRONMENT [==[${environment}]==]")
  add_custom_command(TARGET ${name} POST_BUILD VERBATIM BYPRODUCTS "${listed}"
    COMMAND "${CMAKE_COMMAND}" "-DPROGRAM=$<TARGET_FILE:${name}>" "-DWRITE=${listed}" "-DPROPERTIES=${properties}"
      -P "${PROJECT_SOURCE_DIR}/tools/cmake/list_suites.cmake")
  set(include "${CMAKE_CURRENT_BINARY_DIR}/${name}_include.cmake")
  file(WRITE "${include}" "if(EXISTS [==[${listed}]==])\n  include([==[${listed}]==])\nelse()\n"
    "  add_test([==[${name}: not built, type cmake --build]==] false)\nendif()\n")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${include}")
endfunction()

# limbeck_pytest(FILE [LABELS ...] [TIMEOUT SECONDS] [SERIAL]): the file's cases as one test named python.FILE.
function(limbeck_pytest file)
  cmake_parse_arguments(F "SERIAL" "TIMEOUT" "LABELS" ${ARGN})
  get_filename_component(path "${file}" ABSOLUTE)
  get_filename_component(stem "${file}" NAME_WE)
  if(NOT F_TIMEOUT)
    set(F_TIMEOUT 1200)
  endif()
  add_test(NAME python.${stem} WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
    COMMAND "${LIMBECK_PYTHON}" -S "${PROJECT_SOURCE_DIR}/tests/python/warm_python.py" -m pytest -q -rs -p no:cacheprovider "${path}")
  set_tests_properties(python.${stem} PROPERTIES TIMEOUT ${F_TIMEOUT} LABELS "python;${F_LABELS}"
    ENVIRONMENT "${_limbeck_test_environment}")
  if(F_SERIAL)
    set_tests_properties(python.${stem} PROPERTIES RUN_SERIAL ON)
  endif()
endfunction()
