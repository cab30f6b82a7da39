#!/usr/bin/env bash
# JPEG decode + antialiased resize (short side 256, bicubic) + centre crop to an RGB array, one core, against Pillow.
# usage: tools/bench_vs_pillow.sh [VENV [JPEG_DIR]]    VENV (default .cache/bench-venv) gets Pillow and numpy if it lacks
# them. Without JPEG_DIR 24 pictures of 640 x 480 are made. Both sides alternate; medians over PAIRS (default 12) pairs.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.cache/bench-venv} jpegs=${2:-} pairs=${PAIRS:-12}

[ -x build/bench_image ] || { echo "bench_vs_pillow.sh: build/bench_image is missing; run: ninja -C build bench_image" >&2; exit 1; }
if ! "$venv/bin/python" -c 'import PIL, numpy' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet pillow numpy
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/pillow_side.py" <<'PY'
import glob, io, sys, time
import numpy as np
import PIL
from PIL import Image, features

def make(folder):
    """Pictures with a photograph's 1/f spectrum, edges and colour; about 4 bits a pixel as JPEG."""
    rng = np.random.default_rng(0)
    fy, fx = np.meshgrid(np.fft.fftfreq(480), np.fft.rfftfreq(640), indexing="ij")
    spectrum = 1 / np.maximum(np.hypot(fy, fx), 1 / 640) ** 1.1
    for i in range(24):
        planes = [np.fft.irfft2(spectrum * np.fft.rfft2(rng.normal(size=(480, 640)))) for _ in range(3)]
        shared = np.fft.irfft2(spectrum * np.fft.rfft2(rng.normal(size=(480, 640))))
        pixels = np.stack([0.4 * p + shared for p in planes], -1)
        pixels = 128 + 55 * pixels / pixels.std()
        y, x = np.mgrid[0:480, 0:640]
        for _ in range(6):
            cy, cx, r = rng.integers(480), rng.integers(640), rng.integers(20, 120)
            pixels[(y - cy) ** 2 + (x - cx) ** 2 < r * r] += rng.integers(-90, 90, 3)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(f"{folder}/{i:02}.jpg", quality=88)

def run(folder, seconds=1.5):
    files = [open(f, "rb").read() for f in sorted(glob.glob(f"{folder}/*.jpg"))]
    def one(data):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        w, h = image.size
        size = (256, 256 * h // w) if w <= h else (256 * w // h, 256)
        image = image.resize(size, Image.BICUBIC)
        x, y = (size[0] - 256) // 2, (size[1] - 256) // 2
        return np.asarray(image.crop((x, y, x + 256, y + 256)))
    for data in files[:3]:
        one(data)
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        one(files[count % len(files)])
        count += 1
    print((time.process_time() - cpu) / count * 1e3, (time.perf_counter() - wall) / count * 1e3)

if sys.argv[1] == "make":
    make(sys.argv[2])
elif sys.argv[1] == "version":
    print(f"Pillow {PIL.__version__}, libjpeg-turbo {features.version_feature('libjpeg_turbo')}")
else:
    run(sys.argv[2])
PY
python=$venv/bin/python
if [ -z "$jpegs" ]; then jpegs=$work/jpegs; mkdir "$jpegs"; "$python" "$work/pillow_side.py" make "$jpegs"; fi

ours() {  # ours FAST -> "cpu_ms wall_ms" a picture
  OMP_NUM_THREADS=1 FEWSTEP_BENCH_JPEGS=$jpegs build/bench_image --benchmark_filter="read_resized/filter:1/fast:$1\$" --benchmark_min_time=1.5 \
    --benchmark_format=csv 2>/dev/null | awk -F, '/read_resized/ {print $4, $3}'
}
for _ in $(seq "$pairs"); do
  echo "pillow $("$python" "$work/pillow_side.py" run "$jpegs")"
  echo "exact $(ours 0)"
  echo "fast $(ours 1)"
done > "$work/times"
"$python" "$work/pillow_side.py" version
echo "$(ls "$jpegs"/*.jpg | wc -l) JPEGs, $(du -cb "$jpegs"/*.jpg | awk 'END {print int($1 / (NR - 1) / 1024)}') KB each on average, $pairs pairs"
"$python" - "$work/times" <<'PY'
import statistics, sys
times = {}
for line in open(sys.argv[1]):
    name, cpu, wall = line.split()
    times.setdefault(name, []).append((float(cpu), float(wall)))
base = times["pillow"]
for name, rows in times.items():
    cpu, wall = (statistics.median(r[k] for r in rows) for k in (0, 1))
    ratios = [b[0] / r[0] for b, r in zip(base, rows)]
    print(f"{name:7} cpu {cpu:6.3f} ms  wall {wall:6.3f} ms a picture   {statistics.median(ratios):.2f}x of Pillow's throughput per core "
          f"(pairs {min(ratios):.2f}...{max(ratios):.2f})")
PY
