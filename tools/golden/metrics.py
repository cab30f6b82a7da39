#!/usr/bin/env python3
"""Makes tests/golden/metrics: what torch-fidelity, numpy and scipy make of small feature sets.

    python tools/golden/metrics.py OUT      (needs torch, torch-fidelity 0.4.0, scipy, safetensors)

a [120, 16], b [150, 16], logits [103, 20] in float32; permutations of numpy.random.RandomState; inception score (10 splits, seed
2020), KID (subsets of 50, 20 of them, seed 2020), precision and recall (k = 3; a generated, b real), CMMD (numpy, by its
definition), FID by scipy.linalg.sqrtm.
"""
import argparse
import json
import pathlib
from importlib.metadata import version

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric


def frechet(a, b):
    root = sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False)) - 2 * np.trace(root.real)


def cmmd(a, b, sigma=10.0):
    def kernel(x, y):
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / (2 * sigma ** 2)).mean()
    return 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    rng = np.random.default_rng(7)
    mix = rng.normal(size=(16, 16)) * 0.4
    a = (rng.normal(size=(120, 16)) @ mix + 0.2).astype(np.float32)
    b = (rng.normal(size=(150, 16)) @ mix * 1.1).astype(np.float32)
    logits = (3 * rng.normal(size=(103, 20))).astype(np.float32)
    ta, tb = torch.from_numpy(a), torch.from_numpy(b)
    isc = isc_features_to_metric(torch.from_numpy(logits), 10, True, 2020)
    kid = kid_features_to_metric(ta.double(), tb.double(), kid_subsets=20, kid_subset_size=50, kid_kernel="poly", kid_kernel_poly_degree=3,
                                 kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=2020, verbose=False)
    prc = prc_features_to_metric(ta, tb, prc_neighborhood=3, prc_batch_size=10000, save_cpu_ram=False, verbose=False)
    values = {**isc, **kid, **prc, "frechet_distance": frechet(a.astype(np.float64), b.astype(np.float64)), "cmmd": cmmd(a.astype(np.float64), b.astype(np.float64))}
    tensors = {"a": ta, "b": tb, "logits": torch.from_numpy(logits)}
    for n, seed in ((1, 0), (2, 3), (17, 2020), (1000, 2020)):
        tensors[f"permutation.{n}.{seed}"] = torch.from_numpy(np.random.RandomState(seed).permutation(n))
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "io.safetensors")
    versions = {p: version(p) for p in ("torch", "torch-fidelity", "numpy", "scipy")}
    (out / "expected.json").write_text(json.dumps({"values": {k: float(v) for k, v in values.items()}, "versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
