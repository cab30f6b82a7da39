#!/usr/bin/env bash
# Configures and builds everything into build/. Arguments are passed to cmake: tools/build.sh -DFEWSTEP_CUDA=ON
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
cmake -S . -B build -G Ninja "$@" > build/configure.log || { cat build/configure.log >&2; exit 1; }
cmake --build build
