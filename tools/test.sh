#!/usr/bin/env bash
# Everything from a bare Debian 12 machine to a green test run: set-up, build, all tests.
# Arguments are passed to ctest: tools/test.sh -L fast, tools/test.sh -R safetensors.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/build.sh
start=$SECONDS
# A folder of its own for everything that tests write: what an earlier run left behind cannot be met again.
TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/fewstep-tests-XXXXXX")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
ctest --test-dir build --output-on-failure "$@"
echo "test.sh: tests $((SECONDS - start)) s"
