#!/usr/bin/env bash
# From JPEG files to a normalised float tensor, one core, against torchvision's two ways: `pil` (PIL decode, Resize,
# CenterCrop, ToTensor, Normalize; what the diffusers training scripts do) and `tensor` (torchvision.io decode_jpeg, v2
# transforms on tensors). Same files, same filter (antialiased bicubic), same sizes; medians over PAIRS (default 6) turns.
# usage: tools/bench_vs_torchvision.sh [VENV [JPEG_DIR]]    VENV (default .cache/bench-venv) gets torch, torchvision and
# Pillow if it lacks them. Without JPEG_DIR 12 pictures of 2 to 12 megapixels are made. SIZES (default "256 512 1024").
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.cache/bench-venv} jpegs=${2:-} pairs=${PAIRS:-6} sizes=${SIZES:-256 512 1024}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0

[ -x build/bench_loader ] || { echo "bench_vs_torchvision.sh: build/bench_loader is missing; run: ninja -C build bench_loader" >&2; exit 1; }
if ! "$venv/bin/python" -c 'import PIL, numpy, torchvision' 2>/dev/null; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet torch torchvision pillow numpy --extra-index-url https://download.pytorch.org/whl/cpu
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/side.py" <<'PY'
import glob, sys, time
import numpy as np
import PIL, torch, torchvision
from PIL import Image, features

SIZES = [(1600, 1200), (1200, 1600), (1920, 1280), (2048, 1536), (2592, 1944), (3000, 2000),
         (2400, 3200), (3264, 2448), (3456, 2304), (4000, 3000), (1800, 1800), (2560, 1440)]

def make(folder):
    """Pictures with a photograph's 1/f spectrum, edges and colour."""
    rng = np.random.default_rng(0)
    for i, (w, h) in enumerate(SIZES):
        fy, fx = np.meshgrid(np.fft.fftfreq(h), np.fft.rfftfreq(w), indexing="ij")
        spectrum = (1 / np.maximum(np.hypot(fy, fx), 1 / w) ** 1.3).astype(np.float32)
        plane = lambda: np.fft.irfft2(spectrum * np.fft.rfft2(rng.normal(size=(h, w)).astype(np.float32)), s=(h, w))
        shared = plane()
        pixels = np.stack([0.4 * plane() + shared for _ in range(3)], -1)
        pixels = 128 + 55 * pixels / pixels.std()
        y, x = np.mgrid[0:h, 0:w]
        for _ in range(6):
            cy, cx, r = rng.integers(h), rng.integers(w), rng.integers(h // 25, h // 4)
            pixels[(y - cy) ** 2 + (x - cx) ** 2 < r * r] += rng.integers(-90, 90, 3)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(f"{folder}/{i:02}.jpg", quality=90)

def pipeline(kind, size):
    from torchvision.transforms import v2, InterpolationMode as I
    import torchvision.transforms as v1
    if kind == "pil":
        change = v1.Compose([v1.Resize(size, I.BICUBIC), v1.CenterCrop(size), v1.ToTensor(), v1.Normalize([0.5] * 3, [0.5] * 3)])
        return lambda path: change(Image.open(path).convert("RGB"))
    change = v2.Compose([v2.Resize(size, I.BICUBIC, antialias=True), v2.CenterCrop(size), v2.ToDtype(torch.float32, scale=True),
                         v2.Normalize([0.5] * 3, [0.5] * 3)])
    mode = torchvision.io.ImageReadMode.RGB
    return lambda path: change(torchvision.io.decode_jpeg(torchvision.io.read_file(path), mode=mode))

def run(kind, folder, size):
    torch.set_num_threads(1)
    files, one = sorted(glob.glob(f"{folder}/*.jpg")), pipeline(kind, size)
    for path in files[:2]:
        one(path)
    wall, cpu = time.perf_counter(), time.process_time()
    for path in files:
        torch.stack([one(path)])
    print((time.process_time() - cpu) / len(files) * 1e3, (time.perf_counter() - wall) / len(files) * 1e3)

if sys.argv[1] == "make":
    make(sys.argv[2])
elif sys.argv[1] == "version":
    print(f"torchvision {torchvision.__version__}, torch {torch.__version__}, Pillow {PIL.__version__} "
          f"(libjpeg-turbo {features.version_feature('libjpeg_turbo')})")
else:
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]))
PY
python=$venv/bin/python
if [ -z "$jpegs" ]; then jpegs=$work/jpegs; mkdir "$jpegs"; "$python" "$work/side.py" make "$jpegs"; fi
count=$(ls "$jpegs"/*.jpg | wc -l)

ours() {  # ours SIZE FAST -> "cpu_ms wall_ms" a picture; every picture once
  FEWSTEP_BENCH_JPEGS=$jpegs build/bench_loader --benchmark_filter="load_jpegs/size:$1/fast:$2\$" --benchmark_min_time=0.01 \
    --benchmark_format=csv 2>/dev/null | awk -F, -v n="$count" '/^"load_jpegs/ {print $4 / n, $3 / n}'
}
for _ in $(seq "$pairs"); do
  for size in $sizes; do
    echo "$size pil $("$python" "$work/side.py" pil "$jpegs" "$size")"
    echo "$size exact $(ours "$size" 0)"
    echo "$size tensor $("$python" "$work/side.py" tensor "$jpegs" "$size")"
    echo "$size fast $(ours "$size" 1)"
  done
done > "$work/times"
"$python" "$work/side.py" version
echo "$count JPEGs, $(du -cb "$jpegs"/*.jpg | awk 'END {print int($1 / (NR - 1) / 1024)}') KB each on average, $pairs turns"
"$python" - "$work/times" <<'PY'
import statistics, sys
times = {}
for line in open(sys.argv[1]):
    size, name, cpu, wall = line.split()
    times.setdefault(int(size), {}).setdefault(name, []).append((float(cpu), float(wall)))
print(f"{'size':>5} {'':8} {'cpu ms':>8} {'wall ms':>8} {'/s/core':>8}   throughput per core against pil, tensor (range over turns)")
for size, rows in times.items():
    for name in ("pil", "tensor", "exact", "fast"):
        cpu, wall = (statistics.median(r[k] for r in rows[name]) for k in (0, 1))
        text = ""
        if name in ("exact", "fast"):
            for base in ("pil", "tensor"):
                ratios = [b[0] / r[0] for b, r in zip(rows[base], rows[name])]
                text += f"   {base} {statistics.median(ratios):.2f}x ({min(ratios):.2f}...{max(ratios):.2f})"
        print(f"{size:5} {name:8} {cpu:8.2f} {wall:8.2f} {1e3 / cpu:8.1f}{text}")
PY
