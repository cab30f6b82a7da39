#!/usr/bin/env bash
# Fuzzes the config reader and the safetensors header parser with libFuzzer and AddressSanitizer.
# usage: tools/fuzz.sh [SECONDS per target, default 300] [TARGET ...]      targets: config safetensors
# Needs clang++ (Debian: clang libclang-rt-14-dev). Findings and the grown corpora stay in build/fuzz/.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-300}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(config safetensors)
command -v clang++ >/dev/null || { echo "fuzz.sh: needs clang++: sudo apt-get install clang libclang-rt-14-dev" >&2; exit 1; }
out=build/fuzz
mkdir -p "$out"

# fmt header-only: Debian's libfmt is not instrumented and its ABI is gcc's.
flags=(-std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -DFMT_HEADER_ONLY -I.)
base=(src/base/text.cpp src/base/files.cpp)
declare -A sources=(
  [config]="tests/fuzz/fuzz_config.cpp src/config/layers.cpp src/config/reader.cpp src/config/scalar.cpp src/config/tree.cpp src/config/writer.cpp"
  [safetensors]="tests/fuzz/fuzz_safetensors.cpp src/io/safetensors_header.cpp"
)
declare -A libraries=([config]="-lyaml-cpp" [safetensors]="")
declare -A longest=([config]=4096 [safetensors]=8192)

# Seeds: real files, so that the fuzzer does not have to invent the grammar.
seed_config() {
  local n=0
  for file in tests/config/good/*.yaml tests/config/bad/*.yaml; do
    [ -f "$file" ] || continue
    { printf '\x00'; cat "$file"; } > "$1/seed-$((n++))"
    { printf '\x02'; cat "$file"; printf '\noptimizer.lr=1e-3\nmodel.kind=unet'; } > "$1/seed-$((n++))"
  done
}
seed_safetensors() {
  find tests -name '*.safetensors' -size -64k -exec cp -t "$1" {} + 2>/dev/null || true
}

for target in "${targets[@]}"; do
  [ -n "${sources[$target]:-}" ] || { echo "fuzz.sh: unknown target '$target' (known: ${!sources[*]})" >&2; exit 2; }
  corpus=$out/corpus-$target
  mkdir -p "$corpus"
  "seed_$target" "$corpus"
  read -ra files <<< "${sources[$target]}"
  read -ra libs <<< "${libraries[$target]}"
  objects=()
  for file in "${files[@]}" "${base[@]}"; do
    object=$out/$target-$(basename "$file" .cpp).o
    objects+=("$object")
    clang++ "${flags[@]}" -c "$file" -o "$object"
  done
  clang++ "${flags[@]}" "${objects[@]}" "${libs[@]}" -o "$out/fuzz_$target"
  dictionary=()
  [ -f "tests/fuzz/$target.dict" ] && dictionary=("-dict=tests/fuzz/$target.dict")
  echo "fuzz.sh: $target for $seconds s"
  status=0
  "$out/fuzz_$target" "$corpus" -max_total_time="$seconds" -max_len="${longest[$target]}" -timeout=10 -rss_limit_mb=2048 \
    -artifact_prefix="$out/$target-" -print_final_stats=1 "${dictionary[@]}" > "$out/$target.log" 2>&1 || status=$?
  grep -E 'ERROR|SUMMARY|runtime error|Test unit|Done|stat::' "$out/$target.log" || true
  [ "$status" = 0 ] || { echo "fuzz.sh: $target found something: $out/$target.log" >&2; exit 1; }
done
