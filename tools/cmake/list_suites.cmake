# Run after a GoogleTest binary is built: cmake -DPROGRAM=… -DWRITE=… -DPROPERTIES=… -P list_suites.cmake
# Writes one test of ctest's for each suite of cases. (gtest_discover_tests makes one for each case, and LibTorch takes
# 0.2 s to load: two thousand processes were a third of the suite's time.)
execute_process(COMMAND "${PROGRAM}" --gtest_list_tests OUTPUT_VARIABLE listed RESULT_VARIABLE failed TIMEOUT 120)
if(failed)
  message(FATAL_ERROR "${PROGRAM} --gtest_list_tests: ${failed}")
endif()
string(REGEX MATCHALL "(^|\n)[^ \n]+\\.[ \n]" suites "${listed}")
set(text "")
foreach(suite IN LISTS suites)
  string(REGEX REPLACE "^\n?(.*)\\.[ \n]$" "\\1" suite "${suite}")
  string(APPEND text "add_test([==[${suite}]==] [==[${PROGRAM}]==] [==[--gtest_filter=${suite}.*]==])\n"
    "set_tests_properties([==[${suite}]==] PROPERTIES ${PROPERTIES})\n")
endforeach()
if(text STREQUAL "")
  message(FATAL_ERROR "${PROGRAM} --gtest_list_tests names no suite:\n${listed}")
endif()
file(WRITE "${WRITE}" "${text}")
