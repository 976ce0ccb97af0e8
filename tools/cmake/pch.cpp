// The shared precompiled header is made while this file is compiled (limbeck_pch in floor.cmake).
