#!/usr/bin/env bash
# The same transformer (about 50 M parameters, 512 tokens, float32) in fewstep and in PyTorch, in turns on this machine.
#   tools/bench_vs_pytorch.sh [VENV] [-- options of tools/bench_pytorch.py]
# VENV: an environment with torch and transformers; made when it does not exist (default .cache/bench-venv).
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.cache/bench-venv
if [[ $# -gt 0 && $1 != -- ]]; then venv=$1; shift; fi
[[ ${1:-} == -- ]] && shift
if [[ ! -x $venv/bin/python ]]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet torch==2.15.0 --index-url "${FEWSTEP_TORCH_INDEX:-https://pypi.org/simple}"
  "$venv/bin/pip" install --quiet transformers==5.23.0 safetensors numpy
fi
binary=${FEWSTEP_BENCH_BINARY:-build/bench_transformer}
[[ -x $binary ]] || cmake --build build --target bench_transformer
# libgomp's spinning threads would make either side look many times slower on busy cores.
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
exec "$venv/bin/python" tools/bench_pytorch.py --binary "$binary" "$@"
