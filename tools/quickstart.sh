#!/usr/bin/env bash
# From a bare Debian 12 machine to a report: set-up, build, then the whole path on Fashion-MNIST: encoders, VQ tokenizer,
# autoregressive transformer, samples, evaluation, then SJD2: fine-tuning and decoding in fewer passes. Called again it continues
# where it stopped; finished parts are skipped. Leaves runs/quickstart/report.html and runs/quickstart/sjd2.html.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/build.sh
start=$SECONDS
# Without this, libgomp's spinning threads make tiny parallel regions very slow on busy cores.
export OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0
build/fewstep experiment experiments/quickstart "$@"
cp runs/quickstart/eval/report.html runs/quickstart/report.html
cp runs/quickstart/sjd2/report.html runs/quickstart/sjd2.html
echo "quickstart.sh: trainings and evaluations $((SECONDS - start)) s; open runs/quickstart/report.html and runs/quickstart/sjd2.html"
