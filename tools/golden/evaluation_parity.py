#!/usr/bin/env python3
"""Full-size checks of `fewstep eval` against pytorch-fid, clean-fid and torch-fidelity: same weights, same JPEGs, same numbers.

    python tools/golden/evaluation_parity.py --fewstep build/fewstep [--photos FOLDER] [--count 50]
    (needs torch, torchvision, pytorch-fid, clean-fid, torch-fidelity, scipy below 1.18, safetensors, Pillow; without --photos also
    scikit-image and scikit-learn, whose sample photographs are cropped)

1. features: crops of photographs at odd sizes, JPEGs of several qualities and subsamplings, some grey, through the whole path of each
   side: decoder, resize, value map, InceptionV3 with random weights (566 entries, not the published ones). Image by image: the mean
   of a folder that holds an image twice is its features.
2. distance: statistics of more than 4,096 rows of full rank at 2,048 features, against pytorch_fid's calculate_frechet_distance
   (scipy.linalg.sqrtm).
Prints the largest relative differences; exit 1 above the limits (features 1e-4 of an image's norm and of its rms, distances 1e-6).
"""
import argparse
import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from bench_evaluation import D, make_statistics, make_weights  # noqa: E402

FEATURE_LIMIT, DISTANCE_LIMIT = 1e-4, 1e-6


def photographs(folder):
    if folder:
        return [Image.open(f).convert("RGB") for f in sorted(folder.iterdir()) if f.suffix.lower() in (".jpg", ".jpeg", ".png")]
    from skimage import data
    from sklearn.datasets import load_sample_images
    arrays = list(load_sample_images().images)
    for name in ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "camera", "coins", "brick", "grass", "gravel", "immunohistochemistry"):
        try:
            arrays.append(getattr(data, name)())
        except Exception:  # not in this wheel
            print(f"skimage.data.{name} is not there")
    return [Image.fromarray(a).convert("RGB") for a in arrays]


def make_jpegs(folder, photos, count):
    rng = np.random.default_rng(11)
    folder.mkdir()
    sizes = set()
    for i in range(count):
        photo = photos[i % len(photos)]
        w, h = (int(rng.integers(33, side // 2) * 2 - 1) for side in photo.size)  # odd, 65 to the whole
        x, y = int(rng.integers(0, photo.width - w + 1)), int(rng.integers(0, photo.height - h + 1))
        crop = photo.crop((x, y, x + w, y + h))
        if i % 10 == 9:
            crop = crop.convert("L")
        sizes.add(crop.size)
        crop.save(folder / f"{i:03}.jpg", quality=(40, 60, 75, 85, 92, 97)[i % 6], subsampling=i % 3 if crop.mode == "RGB" else -1, progressive=i % 4 == 3)
    print(f"{count} JPEGs of {len(photos)} photographs, {len(sizes)} sizes, {min(sizes)} to {max(sizes)}")


def our_features(args, work, mode, files):
    rows = []
    for f in files:
        twice = work / "twice"
        shutil.rmtree(twice, ignore_errors=True)
        twice.mkdir()
        shutil.copy(f, twice / "a.jpg"), shutil.copy(f, twice / "b.jpg")
        subprocess.run([args.fewstep, "eval", "statistics", twice, work / "twice.npz", "--encoder", work / "inception", "--mode", mode], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        rows.append(np.load(work / "twice.npz")["mu"])
    return np.stack(rows)


def their_features(weights, files):
    """Per image pipeline: the features of the package that defines it, with its own code."""
    from cleanfid.resize import make_resizer
    from pytorch_fid.fid_score import get_activations
    from pytorch_fid.inception import InceptionV3
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    plain, exact = InceptionV3([3]).eval(), InceptionV3([3]).eval().double()
    raw = InceptionV3([3], resize_input=False, normalize_input=False).eval()
    fidelity = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    resize = make_resizer("PIL", False, "bicubic", (299, 299))
    out = {"pytorch-fid": [], "clean": [], "tf-legacy": [], "float64": []}
    for f in files:
        array = np.array(Image.open(f).convert("RGB"))
        chw = torch.from_numpy(array.transpose(2, 0, 1).copy())[None]
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar an image
            out["pytorch-fid"].append(get_activations([f], plain, batch_size=1, num_workers=0)[0])
        with torch.no_grad():
            out["float64"].append(exact(chw.double() / 255)[0].flatten().numpy())
            clean = torch.from_numpy(resize(array).transpose(2, 0, 1).copy())[None]
            out["clean"].append(raw((clean - 128) / 128)[0].flatten().numpy())
            out["tf-legacy"].append(fidelity(chw)[0].flatten().numpy())
    return {k: np.stack(v).astype(np.float64) for k, v in out.items()}


def check_features(args, work, weights):
    make_jpegs(work / "jpegs", photographs(args.photos), args.count)
    files = sorted((work / "jpegs").iterdir())
    print("differences of 2048 features, the largest of all images: norm of the difference over norm | largest difference over rms | largest\n"
          "relative to the feature itself (unlimited: rounding of features near zero; pytorch-fid against itself in float64 shows how much)")
    theirs = their_features(weights, files)
    exact = theirs.pop("float64")
    failed, ours = False, {}
    for mode, expected in theirs.items():
        ours[mode] = our_features(args, work, mode, files)
        norm, rms, own = differences(ours[mode], expected)
        ok = max(norm, rms) <= FEATURE_LIMIT
        failed |= not ok
        print(f"  {mode:<34} {norm:.2e} | {rms:.2e} {'ok' if ok else 'FAIL'} (limit {FEATURE_LIMIT:.0e}) | {own:.2e}", flush=True)
    for name, features in {"pytorch-fid against its float64": theirs["pytorch-fid"], "fewstep against that float64": ours["pytorch-fid"]}.items():
        print("  {:<34} {:.2e} | {:.2e} | {:.2e}".format(name, *differences(features, exact)))
    apart = np.linalg.norm(np.diff(exact, axis=0), axis=1) / np.linalg.norm(exact[1:], axis=1)
    print(f"  for scale: two images differ by {apart.min():.2e} of their norm and more")
    return failed


def differences(ours, theirs):
    d = np.abs(ours - theirs)
    return ((np.linalg.norm(d, axis=1) / np.linalg.norm(theirs, axis=1)).max(), (d.max(1) / np.sqrt((theirs ** 2).mean(1))).max(),
            (d / np.maximum(np.abs(theirs), 1e-12)).max())


def spectrum_statistics(path, seed, rows):
    """Eigenvalues from 1 to 1e-5 as those of real features fall, other directions on both sides."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, D + 1) ** -0.75
    basis = np.linalg.qr(rng.normal(size=(D, D)) + 3 * np.eye(D))[0]
    x = rng.normal(size=(rows, D)) * scale @ basis.T + 0.4 + 0.01 * rng.normal(size=D)
    np.savez(path, mu=x.mean(0), sigma=np.cov(x, rowvar=False))


def check_distances(args, work):
    from pytorch_fid.fid_score import calculate_frechet_distance
    failed = False
    sets = {"positive features, 4,096 and 5,000 rows": (make_statistics, 4096, 5000), "falling spectrum, 4,200 and 10,000 rows": (spectrum_statistics, 4200, 10000)}
    for name, (make, n, m) in sets.items():
        a, b = work / "a.npz", work / "b.npz"
        make(a, 1, n), make(b, 2, m)
        done = subprocess.run([args.fewstep, "eval", "fid", a, b, "--encoder", work / "inception", "--mode", "pytorch-fid", "--force", "--json"], check=True,
                              capture_output=True, text=True)
        ours = next(iter(json.loads(done.stdout)["metrics"].values()))["value"]
        x, y = np.load(a), np.load(b)
        theirs = float(calculate_frechet_distance(x["mu"], x["sigma"], y["mu"], y["sigma"]))
        difference = abs(ours - theirs) / theirs
        failed |= difference > DISTANCE_LIMIT
        print(f"  {name}: {ours:.12g} and {theirs:.12g}, relative difference {difference:.1e} {'ok' if difference <= DISTANCE_LIMIT else 'FAIL'} "
              f"(limit {DISTANCE_LIMIT:.0e})", flush=True)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fewstep", type=pathlib.Path, default="build/fewstep")
    parser.add_argument("--photos", type=pathlib.Path, help="folder of photographs to crop")
    parser.add_argument("--count", type=int, default=50)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        weights = make_weights(work / "torch")
        os.environ["TORCH_HOME"] = str(work / "torch")
        subprocess.run([sys.executable, pathlib.Path(__file__).parent.parent / "convert_weights.py", weights, work / "inception"], check=True)
        print("distances")
        failed = check_distances(args, work)
        failed |= check_features(args, work, weights)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
