#!/usr/bin/env bash
# Everything from a bare Debian 12 machine to a green test run: set-up, build, all tests.
# Arguments are passed to ctest: tools/test.sh -L fast, tools/test.sh -R safetensors.
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
tools/setup.sh
setup_done=$SECONDS
tools/build.sh
build_done=$SECONDS
# Without this, libgomp's spinning threads make tiny parallel regions very slow on busy cores.
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0
ctest --test-dir build --output-on-failure "$@"
echo "test.sh: set-up $((setup_done - start)) s, build $((build_done - setup_done)) s, tests $((SECONDS - build_done)) s"
