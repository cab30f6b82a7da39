#!/usr/bin/env bash
# All sections of bench_decoding: speed-ups over ar, time of a pass against its length, passes of gated and published sjd2,
# memory, cost of deterministic=true.
#   tools/bench_decoding.sh [--force] [--out DIR] [RUN_OR_MODEL_DIR]
# Without a folder the models are random ones (tiny, and 50 M parameters with 1,024 tokens). Results go to DIR
# (default .cache/bench-decoding) as text and JSON. On a busy machine timings mean nothing: it refuses, unless --force.
set -euo pipefail
cd "$(dirname "$0")/.."
force= out=.cache/bench-decoding model=tiny
while [[ $# -gt 0 ]]; do
  case $1 in
    --help|-h) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --force) force=1 ;;
    --out) out=${2:?--out DIR}; shift ;;
    -*) echo "bench_decoding.sh: unknown option $1 (--force, --out DIR)" >&2; exit 2 ;;
    *) model=$1 ;;
  esac
  shift
done
binary=${FEWSTEP_BENCH_BINARY:-build/bench_decoding}
[[ -x $binary ]] || cmake --build build --target bench_decoding
read -r load _ < /proc/loadavg
if awk -v l="$load" 'BEGIN { exit !(l > 0.5) }'; then
  echo "bench_decoding.sh: the load average of the last minute is $load, above 0.5: other work is running" >&2
  [[ -n $force ]] || { echo "bench_decoding.sh: wait for it to end, or give --force" >&2; exit 1; }
fi
# Spinning threads of libgomp would make everything look many times slower on busy cores.
# A model of a few million parameters decodes on one thread: waking a second costs more than its work (5 x per pass here), and
# the ratio over ar measured with two would be that loss. OMP_NUM_THREADS overrides both.
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0
small_threads=${OMP_NUM_THREADS:-1} large_threads=${OMP_NUM_THREADS:-$(nproc)}
mkdir -p "$out"
section() {  # NAME, then arguments of bench_decoding
  echo "== $1 ($OMP_NUM_THREADS threads)"
  "$binary" --json "$out/$1.json" "${@:2}" | tee "$out/$1.txt"
}
export OMP_NUM_THREADS=$small_threads
section ratios ratios --model "$model"
section ratios-window16 ratios --model "$model" --window 16
section deterministic deterministic --model "$model" --batch 8
section memory memory --model "$model"
section ridge ridge --model "$model"
section passes passes --model "$model"
if [[ $model == tiny ]]; then
  section passes-1024 passes --model tiny1024
  export OMP_NUM_THREADS=$large_threads
  section ratios-50m ratios --model 50m --assume-s 3.2
  section ratios-50m-window64 ratios --model 50m --batch 1 --window 64 --top-k 2000 --assume-s 3.2
  section deterministic-50m deterministic --model 50m --batch 8 --places 1
  section memory-50m memory --model 50m --rounds 1
  section ridge-50m ridge --model 50m
fi
