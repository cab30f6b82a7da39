#!/usr/bin/env bash
# Configures (once) and builds everything into build/. Arguments are passed to cmake: tools/build.sh -DFEWSTEP_CUDA=ON
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -f build/build.ninja ] || [ $# -gt 0 ]; then
  mkdir -p build
  cmake -S . -B build -G Ninja "$@" > build/configure.log || { cat build/configure.log >&2; exit 1; }
fi
cmake --build build
