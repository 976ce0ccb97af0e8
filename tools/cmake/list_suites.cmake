# Run after a GoogleTest binary is built: cmake -DPROGRAM=… -DWRITE=… -DPROPERTIES=… -P list_suites.cmake
# Writes one test of ctest's for each suite of cases that takes seconds, and one for every ten of the others, named by all of
# them. (gtest_discover_tests makes one for each case, and LibTorch takes 0.2 s to load: two thousand processes were a third
# of the tests' time, and one for each of the short suites still 2 % of it.)
cmake_minimum_required(VERSION 3.25)
execute_process(COMMAND "${PROGRAM}" --gtest_list_tests OUTPUT_VARIABLE listed RESULT_VARIABLE failed TIMEOUT 120)
if(failed)
  message(FATAL_ERROR "${PROGRAM} --gtest_list_tests: ${failed}")
endif()
string(REGEX MATCHALL "(^|\n)[^ \n]+\\.[ \n]" suites "${listed}")
# Seconds, as in tests/CMakeLists.txt: ctest starts long ones first.
set(long GlooRanks=29 All/AttentionValues=15 VectorMath=14 VocabularyParallel=12 All/ComposedAttention=12 Gloo=10
  Layers/QuantizedLinearValues=7 Of/PowerLoss=6 Filesystems/NewFileTest=6 Table/CheckAdapter=5 Table/AdapterSwitch=5
  Errors/EveryDiskCall=5 Session=5 Dtypes/CheckAdapterElsewhere=4 All/QuantizedLinearValues=4 ChatTemplates=4 QuantizedModel=4
  Formats/QuantizedLinearOf=4 All/LinearValues=3 PlannedPeak=3 Operators/AdamWTest=3 Families/CheckMutation=3 CheckpointKill=3
  Families/SweepOf=20 SweepMeter=3)
# What a process does first, or what it has in memory, is part of what these look at.
set(alone BadWeightsFileMemory CudaLibrary CheckpointKill PlannedPeak TuneAllocator Allocation)

set(text "")
function(add_suites name filter cost)
  string(APPEND text "add_test([==[${name}]==] [==[${PROGRAM}]==] [==[--gtest_filter=${filter}]==])\n"
    "set_tests_properties([==[${name}]==] PROPERTIES ${PROPERTIES} COST ${cost})\n")
  set(text "${text}" PARENT_SCOPE)
endfunction()

set(group "")
set(filter "")
set(count 0)
foreach(suite IN LISTS suites)
  string(REGEX REPLACE "^\n?(.*)\\.[ \n]$" "\\1" suite "${suite}")
  set(cost "")
  foreach(entry IN LISTS long)
    if(entry MATCHES "^${suite}=(.*)$")
      set(cost "${CMAKE_MATCH_1}")
    endif()
  endforeach()
  if(cost STREQUAL "" AND suite IN_LIST alone)
    set(cost 1)
  endif()
  if(NOT cost STREQUAL "")
    add_suites("${suite}" "${suite}.*" ${cost})
    continue()
  endif()
  list(APPEND group "${suite}")
  string(APPEND filter ":${suite}.*")
  math(EXPR count "${count} + 1")
  if(count EQUAL 10)
    list(JOIN group "+" name)
    add_suites("${name}" "${filter}" 4)
    set(group "")
    set(filter "")
    set(count 0)
  endif()
endforeach()
if(count GREATER 0)
  list(JOIN group "+" name)
  add_suites("${name}" "${filter}" 4)
endif()
if(text STREQUAL "")
  message(FATAL_ERROR "${PROGRAM} --gtest_list_tests names no suite:\n${listed}")
endif()
file(WRITE "${WRITE}" "${text}")
