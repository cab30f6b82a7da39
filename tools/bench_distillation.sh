#!/usr/bin/env bash
# One cycle of DMD2 (a student's turn and two of the fake score) on the UNet of configs/sdxl/text16.yaml, batch 32, in fewstep and in
# PyTorch with diffusers' UNet, in turns on this machine; the GAN's backward in one graph and in two stages; two steps against the teacher.
#   tools/bench_distillation.sh [VENV] [-- options of tools/bench_distillation.py]
# VENV: as for tools/bench_vs_diffusers.sh (default .cache/bench-diffusers); made when it does not exist.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.cache/bench-diffusers
if [[ $# -gt 0 && $1 != -- ]]; then venv=$1; shift; fi
[[ ${1:-} == -- ]] && shift
if [[ ! -x $venv/bin/python ]]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet torch==2.15.0 --index-url "${FEWSTEP_TORCH_INDEX:-https://pypi.org/simple}"
  "$venv/bin/pip" install --quiet diffusers==0.42.1 transformers==5.23.0 accelerate safetensors numpy
fi
binary=${FEWSTEP_BENCH_BINARY:-build/bench_distillation}
[[ -x $binary ]] || cmake --build build --target bench_distillation
# libgomp's spinning threads would make either side look many times slower on busy cores.
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} DIFFUSERS_VERBOSITY=error HF_HUB_OFFLINE=1
exec "$venv/bin/python" tools/bench_distillation.py --binary "$binary" "$@"
