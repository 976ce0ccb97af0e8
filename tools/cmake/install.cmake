# cmake --install build/release --prefix P: headers, libraries, bin/limbeck and find_package(Limbeck).
# Included last, when all targets exist.

include(CMakePackageConfigHelpers)

set(_package "${CMAKE_INSTALL_LIBDIR}/cmake/Limbeck")
foreach(_floor kernels modules trainer)
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/${_floor}" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/limbeck"
    FILES_MATCHING PATTERN "*.h")
endforeach()
if(TARGET limbeck)
  install(TARGETS limbeck RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  # The program writes its own completion, so that it knows every option.
  set(_completion "share/bash-completion/completions/limbeck")
  install(CODE "
    execute_process(COMMAND \"$<TARGET_FILE:limbeck>\" completion OUTPUT_VARIABLE script COMMAND_ERROR_IS_FATAL ANY)
    file(WRITE \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${_completion}\" \"\${script}\")
    message(STATUS \"Installing: \$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${_completion}\")")
endif()
install(EXPORT LimbeckTargets NAMESPACE Limbeck:: DESTINATION "${_package}")
configure_package_config_file("${PROJECT_SOURCE_DIR}/tools/cmake/LimbeckConfig.cmake.in"
  "${CMAKE_BINARY_DIR}/LimbeckConfig.cmake" INSTALL_DESTINATION "${_package}")
write_basic_package_version_file("${CMAKE_BINARY_DIR}/LimbeckConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_BINARY_DIR}/LimbeckConfig.cmake" "${CMAKE_BINARY_DIR}/LimbeckConfigVersion.cmake"
  "${PROJECT_SOURCE_DIR}/tools/cmake/torch.cmake" DESTINATION "${_package}")
