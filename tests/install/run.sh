#!/usr/bin/env bash
# run.sh BUILD COMPILER: installs BUILD into an empty folder, builds consumer.cpp with find_package(Limbeck) and runs it,
# and runs the installed program. Neither may need the build folder, which is why it is not named to CMake.
set -euo pipefail
build=$1 compiler=$2 here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" >"$work/install.log" || { cat "$work/install.log"; exit 1; }
cmake -G Ninja -S "$here" -B "$work/consumer" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_COMPILER="$compiler" \
  -DCMAKE_PREFIX_PATH="$work/prefix" >"$work/configure.log" 2>&1 || { cat "$work/configure.log"; exit 1; }
cmake --build "$work/consumer"
"$work/consumer/consumer"
for library in "$work"/prefix/lib/liblimbeck_*.so "$work/consumer/consumer"; do
  if readelf -d "$library" | grep -E 'RUNPATH|RPATH' | grep -F "$build"; then
    echo "$library still looks for libraries in the build folder" >&2
    exit 1
  fi
done
"$work/prefix/bin/limbeck" list models >/dev/null
"$work/prefix/bin/limbeck" completion | cmp - "$work/prefix/share/bash-completion/completions/limbeck"
echo "installed, built on and run"
