#!/usr/bin/env bash
# The same UNet (SDXL's form, about 86 M parameters, 32 x 32 latents, batch 2, float32) in fewstep and in diffusers, in turns
# on this machine: training step, forward pass, peak memory, and what recompute costs and saves.
#   tools/bench_vs_diffusers.sh [VENV] [-- options of tools/bench_diffusers.py]
# VENV: an environment with torch and diffusers; made when it does not exist (default .cache/bench-diffusers).
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
binary=${FEWSTEP_BENCH_BINARY:-build/bench_unet}
[[ -x $binary ]] || cmake --build build --target bench_unet
# libgomp's spinning threads would make either side look many times slower on busy cores.
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} DIFFUSERS_VERBOSITY=error HF_HUB_OFFLINE=1
exec "$venv/bin/python" tools/bench_diffusers.py --binary "$binary" "$@"
