#!/usr/bin/env bash
# Sets the machine up (tools/setup.sh), configures, and builds everything into build/.
# Arguments are passed to cmake: tools/build.sh -DFEWSTEP_CUDA=ON
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
tools/setup.sh
setup_done=$SECONDS
# The first build is a whole one: sources in groups. Where you edit a lot: tools/build.sh -DFEWSTEP_UNITY=OFF
[ -f build/build.ninja ] || set -- -DFEWSTEP_UNITY=ON "$@"
mkdir -p build
cmake -S . -B build -G Ninja "$@" > build/configure.log || { cat build/configure.log >&2; exit 1; }
cmake --build build
echo "build.sh: set-up $((setup_done - start)) s, build $((SECONDS - setup_done)) s"
