#!/usr/bin/env bash
# Makes a bare Debian 12 machine able to build and run fewstep: Debian packages, then libtorch into .deps/.
# Idempotent: a second call takes well under a second. `--cuda` adds the CUDA wheel set (about 5 GB more);
# `--check` only says what is missing (exit 1) and installs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

want_cuda=0 check_only=0
for arg in "$@"; do
  case "$arg" in
    --cuda) want_cuda=1 ;;
    --check) check_only=1 ;;
    *) echo "setup.sh: unknown argument '$arg' (known: --cuda, --check)" >&2; exit 2 ;;
  esac
done

packages=(
  g++ cmake ninja-build ccache lld pkg-config python3 python3-pip ca-certificates git
  libyaml-cpp-dev libhdf5-dev libfmt-dev libcli11-dev nlohmann-json3-dev libssl-dev zlib1g-dev
  libturbojpeg0-dev libpng-dev libwebp-dev libutf8proc-dev libarchive-dev libgtest-dev libgmock-dev libbenchmark-dev dataset-fashion-mnist
)

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$package" 2>/dev/null)" = "ii " ] || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
  install="apt-get install -y --no-install-recommends ${missing[*]}"
  if [ "$check_only" = 1 ]; then echo "setup.sh: missing Debian packages; run: sudo $install" >&2; exit 1; fi
  sudo=()
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      sudo=(sudo)
    elif command -v sudo >/dev/null && [ -t 0 ]; then
      sudo=(sudo)
    else
      echo "setup.sh: not root and no usable sudo; ask an administrator to run:" >&2
      echo "  apt-get update && $install" >&2
      exit 1
    fi
  fi
  echo "setup.sh: installing ${#missing[@]} Debian packages: ${missing[*]}"
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive $install -qq
fi

# --- libtorch: the C++ libraries inside the PyPI wheel. The cp311 file is taken whatever Python is installed: no
# Python code of it is ever run. libtorch_cpu.so of this CUDA build needs just the CUDA runtime and CUPTI beside it.
site=.deps/site
stamp=$site/.complete
requirements=tools/requirements-libtorch.txt
[ "$want_cuda" = 1 ] && requirements=tools/requirements-libtorch-cuda.txt
key=$(sha256sum "$requirements" | cut -d' ' -f1)
# The CUDA set holds the CPU set: without --cuda either will do.
cuda_key=$(sha256sum tools/requirements-libtorch-cuda.txt | cut -d' ' -f1)
if ! grep -qs -e "$key" -e "$cuda_key" "$stamp"; then
  if [ "$check_only" = 1 ]; then echo "setup.sh: libtorch is missing or out of date in $site; run tools/setup.sh" >&2; exit 1; fi
  echo "setup.sh: installing libtorch into $site"
  mkdir -p .deps
  if [ "$(df -Pk .deps | awk 'NR==2 {print $4}')" -lt 4000000 ]; then
    echo "setup.sh: less than 4 GB free under $PWD/.deps" >&2; exit 1
  fi
  rm -rf "$site.new"
  # --target needs no virtual environment and is allowed on Debian's externally managed Python.
  /usr/bin/python3 -m pip install --quiet --no-deps --no-compile --disable-pip-version-check --target "$site.new" \
    --implementation cp --python-version 3.11 --abi cp311 --abi none \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_25_x86_64 \
    --platform manylinux_2_24_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux_2_18_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64 \
    --only-binary=:all: --require-hashes -r "$requirements"
  rm -rf "$site"
  mv "$site.new" "$site"
  echo "$key" > "$stamp"
fi
