#!/usr/bin/env python3
"""fewstep's evaluation against pytorch-fid, in turns on one machine.

    PYTHON tools/bench_evaluation.py [--build build] [--images FOLDER] [--rounds 5] [--threads 2] [--json FILE]

PYTHON: an environment with torch, torchvision, pytorch-fid, scipy below 1.18, safetensors. Both sides use the same InceptionV3 with
random weights (full size; pytorch-fid finds them where it keeps its download), the same images and statistics, the same
number of threads, and the same settings of OpenMP. Measured, as medians over pairs:

    features    images/s of the network alone on 299 x 299 inputs (best batch size of each side)
    distance    Frechet distance of two sets of statistics with 2,048 features
    folder      processes from start to printed FID: 500 images against a file of statistics; wall and CPU seconds, peak memory

Nothing is timed before both sides agree on the distances. --images: 500 or more JPEGs or PNGs of one size (pytorch-fid stacks them);
without it pictures of 320 x 256 are made. Times on a busy machine mean nothing: with a load above 0.5 the script stops (--force: warns).
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
D = 2048


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default="build", help="folder with fewstep and bench_evaluation")
    parser.add_argument("--images", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=500, help="images of the folder that are used")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=["features", "distance", "folder"])
    parser.add_argument("--force", action="store_true", help="measure on a busy machine all the same")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)  # what this script runs itself as, in its own process
    parser.add_argument("--work", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---------------------------------------------------------------------------------------------------------------- inputs


def make_weights(folder):
    """A state dict of the full size whose activations neither vanish nor explode; where pytorch-fid looks for its download."""
    import torch
    import torchvision
    from pytorch_fid import inception as pf
    torch.manual_seed(0)
    target = folder / "hub" / "checkpoints" / WEIGHTS
    target.parent.mkdir(parents=True)
    net = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    for name, block in dict(Mixed_5b=pf.FIDInceptionA(192, 32), Mixed_5c=pf.FIDInceptionA(256, 64), Mixed_5d=pf.FIDInceptionA(288, 64),
                            Mixed_6b=pf.FIDInceptionC(768, 128), Mixed_6c=pf.FIDInceptionC(768, 160), Mixed_6d=pf.FIDInceptionC(768, 160),
                            Mixed_6e=pf.FIDInceptionC(768, 192), Mixed_7b=pf.FIDInceptionE_1(1280), Mixed_7c=pf.FIDInceptionE_2(2048)).items():
        setattr(net, name, block)
    state = net.state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("running_mean") or name.endswith("bn.bias"):
            value.normal_(0, 0.1)
        elif name.endswith("bn.weight"):
            value.uniform_(0.8, 1.2)
    torch.save(state, target)
    return target


def make_images(folder, count):
    """Pictures with a photograph's 1/f spectrum, edges and colour, 320 x 256."""
    from PIL import Image
    rng = np.random.default_rng(0)
    h, w = 256, 320
    fy, fx = np.meshgrid(np.fft.fftfreq(h), np.fft.rfftfreq(w), indexing="ij")
    spectrum = 1 / np.maximum(np.hypot(fy, fx), 1 / w) ** 1.1
    y, x = np.mgrid[0:h, 0:w]
    folder.mkdir()
    for i in range(count):
        planes = [np.fft.irfft2(spectrum * np.fft.rfft2(rng.normal(size=(h, w)))) for _ in range(4)]
        pixels = np.stack([0.4 * p + planes[3] for p in planes[:3]], -1)
        pixels = 128 + rng.uniform(20, 70) * pixels / pixels.std() + rng.normal(0, 20, 3)
        for _ in range(5):
            cy, cx, r = rng.integers(h), rng.integers(w), rng.integers(10, 90)
            pixels[(y - cy) ** 2 + (x - cx) ** 2 < r * r] += rng.integers(-90, 90, 3)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i:05}.jpg", quality=90)


def make_statistics(path, seed, rows=2 * D):
    """Mean and covariance of correlated positive features, more rows than features."""
    mix = np.random.default_rng(5).normal(size=(D, D)) * 0.02
    x = np.maximum(np.random.default_rng(seed).normal(size=(rows, D)) @ mix + 0.2 + 0.05 * seed, 0)
    np.savez(path, mu=x.mean(0), sigma=np.cov(x, rowvar=False))


# --------------------------------------------------------------------------------------------------------------- running


def environment(args, work):
    # libgomp's spinning threads would make either side look many times slower on busy cores.
    n = str(args.threads)
    return os.environ | {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": n, "MKL_NUM_THREADS": n,
                         "OPENBLAS_NUM_THREADS": n, "TORCH_HOME": str(work / "torch"), "PYTHONWARNINGS": "ignore",
                         "FEWSTEP_BENCH_INCEPTION": str(work / "inception"), "FEWSTEP_BENCH_STATISTICS_A": str(work / "a.npz"),
                         "FEWSTEP_BENCH_STATISTICS_B": str(work / "b.npz")}


def run(command, env):
    """Output, wall and CPU seconds (children included), peak resident memory in MiB of the process (the largest one of its tree)."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen([str(c) for c in command], env=env, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if process.returncode != 0:
            sys.exit(f"bench_evaluation.py: {' '.join(map(str, command))} ended with {process.returncode}:\n{err.read().decode()[-2000:]}")
        return out.read().decode(), dict(wall=wall, cpu=usage.ru_utime + usage.ru_stime, mib=usage.ru_maxrss / 1024)


def child_features(args):
    """pytorch-fid's network: {batch: images/s}, wall and CPU."""
    import torch
    from pytorch_fid.inception import InceptionV3
    torch.set_num_threads(args.threads)
    model = InceptionV3([3]).eval()
    out = {}
    for batch in (8, 16, 32, 50):
        x = torch.rand(batch, 3, 299, 299)  # 299 already: its resize passes values through
        with torch.no_grad():
            model(x)
            wall, cpu, done = time.perf_counter(), time.process_time(), 0
            while done == 0 or time.perf_counter() - wall < 3:
                model(x)
                done += batch
        out[batch] = dict(wall=(time.perf_counter() - wall) / done, cpu=(time.process_time() - cpu) / done)
    print(json.dumps(out))


def child_distance(args):
    import torch
    from pytorch_fid.fid_score import calculate_frechet_distance
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    a, b = np.load(args.work / "a.npz"), np.load(args.work / "b.npz")
    moments = (a["mu"], a["sigma"], b["mu"], b["sigma"])
    wall, cpu = time.perf_counter(), time.process_time()
    value = calculate_frechet_distance(*moments)
    print(json.dumps(dict(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu, value=float(value))))


def benchmark(args, env, name):
    out, _ = run([args.build / "bench_evaluation", f"--benchmark_filter={name}", "--benchmark_format=json", "--benchmark_min_time=3"], env)
    rows = json.loads(out)["benchmarks"]
    for r in rows:
        if r.get("error_occurred"):
            sys.exit(f"bench_evaluation: {r['error_message']}")
    return rows


class Sides:
    def __init__(self, args, work):
        self.args, self.work, self.env = args, work, environment(args, work)

    def child(self, what):
        return json.loads(run([sys.executable, __file__, "--child", what, "--work", self.work, "--threads", self.args.threads], self.env)[0])

    def features(self):
        ours = {}
        for r in benchmark(self.args, self.env, "inception_features"):
            batch = int(re.search(r"batch:(\d+)", r["name"]).group(1))
            ours[batch] = dict(wall=r["real_time"] / 1e3 / batch, cpu=r["cpu_time"] / 1e3 / batch)
        return ours

    def distance(self):
        r, = benchmark(self.args, self.env, "frechet_from_statistics")
        return dict(wall=r["real_time"] / 1e3, cpu=r["cpu_time"] / 1e3, value=r["distance"])

    def folder(self):
        out, cost = run([self.args.build / "fewstep", "eval", "fid", self.work / "a_folder.npz", self.work / "images", "--encoder",
                         self.work / "inception", "--mode", "pytorch-fid", "--json", "--force"], self.env)
        return cost | dict(value=next(iter(json.loads(out)["metrics"].values()))["value"])

    def their_folder(self):
        out, cost = run([sys.executable, "-m", "pytorch_fid", self.work / "images", self.work / "a_folder.npz", "--device", "cpu"], self.env)
        return cost | dict(value=float(out.split()[-1]))


# --------------------------------------------------------------------------------------------------------------- results


def alternate(rounds, ours, theirs):
    a, b = [], []
    for i in range(rounds):  # A B B A A B ...: neither side always follows the other
        for side, results in ((ours, a), (theirs, b)) if i % 2 == 0 else ((theirs, b), (ours, a)):
            results.append(side())
    return a, b


def report(name, unit, ours, theirs, show):
    m = statistics.median
    row = dict(name=name, pairs=len(ours), load=os.getloadavg()[0])
    for key in ours[0]:
        if key != "value":
            row[key] = dict(ours=m(o[key] for o in ours), theirs=m(t[key] for t in theirs), ratio=m(t[key] / o[key] for o, t in zip(ours, theirs)),
                            ratios=[t[key] / o[key] for o, t in zip(ours, theirs)])
    line = f"{name:<28}"
    for key in row:
        if isinstance(row[key], dict):
            line += f"  {key}: {show(key, row[key]['ours'])} and {show(key, row[key]['theirs'])}, {row[key]['ratio']:.2f}x ({min(row[key]['ratios']):.2f}...{max(row[key]['ratios']):.2f})"
    print(line + f"  {len(ours)} pairs", flush=True)
    return row


def agree(name, ours, theirs, limit):
    difference = abs(ours - theirs) / abs(theirs)
    print(f"{name}: {ours:.10g} and {theirs:.10g}, relative difference {difference:.1e}", flush=True)
    if not difference < limit:
        sys.exit(f"bench_evaluation.py: the {name} differ by more than {limit:.0e}; nothing is timed")


def measure(args, sides):
    rows = []
    if "features" in args.only:
        ours, theirs = alternate(args.rounds, sides.features, lambda: {int(k): v for k, v in sides.child("features").items()})
        for batch in ours[0]:
            rows.append(report(f"features, batch {batch}", "images/s", [o[batch] for o in ours], [t[batch] for t in theirs],
                               lambda key, v: f"{1 / v:.2f}/s" if key == "wall" else f"{v:.4f} s"))
        best = [[min(side.values(), key=lambda v: v["wall"]) for side in results] for results in (ours, theirs)]
        rows.append(report("features, best batch", "images/s", *best, lambda key, v: f"{1 / v:.2f}/s" if key == "wall" else f"{v:.4f} s"))
    if "distance" in args.only:
        theirs = lambda: sides.child("distance")
        agree("distances of statistics", sides.distance()["value"], theirs()["value"], 1e-6)
        rows.append(report("distance of statistics", "s", *alternate(args.rounds, sides.distance, theirs), lambda key, v: f"{v:.3f} s"))
    if "folder" in args.only:
        agree("distances of folders", sides.folder()["value"], sides.their_folder()["value"], 1e-4)
        rows.append(report(f"folder of {args.count} -> FID", "s", *alternate(args.rounds, sides.folder, sides.their_folder),
                           lambda key, v: f"{v:.0f} MiB" if key == "mib" else f"{v:.1f} s"))
    return rows


def prepare(args, work):
    subprocess.run([sys.executable, pathlib.Path(__file__).parent / "convert_weights.py", make_weights(work / "torch"), work / "inception"],
                   check=True, stdout=subprocess.DEVNULL)
    make_statistics(work / "a.npz", 1), make_statistics(work / "b.npz", 2)
    if args.images:
        files = sorted(f for f in args.images.iterdir() if f.suffix in (".jpg", ".jpeg", ".png"))[:args.count]
        if len(files) < args.count:
            sys.exit(f"bench_evaluation.py: {args.images} has {len(files)} images, --count asks for {args.count}")
        (work / "images").mkdir()
        for f in files:
            shutil.copy(f, work / "images" / f.name)
    else:
        make_images(work / "images", args.count)
    shutil.copy(work / "a.npz", work / "a_folder.npz")


def check_load(args):
    load = os.getloadavg()[0]
    if load > 0.5:
        message = f"bench_evaluation.py: the machine is busy (load {load:.2f}); times would mean nothing"
        if not args.force:
            sys.exit(message + " (--force: measure all the same)")
        print(message, file=sys.stderr)


def main():
    args = arguments()
    if args.child:
        return {"features": child_features, "distance": child_distance}[args.child](args)
    for name in ("fewstep", "bench_evaluation"):
        if not (args.build / name).exists():
            sys.exit(f"bench_evaluation.py: {args.build / name} is missing; run: cmake --build {args.build} --target {name}")
    check_load(args)
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        prepare(args, work)
        print(f"{args.threads} threads, {args.rounds} pairs; ours and theirs, median of the pairs' ratios (smallest...largest)", flush=True)
        rows = measure(args, Sides(args, work))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
