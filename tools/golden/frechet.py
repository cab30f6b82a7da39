#!/usr/bin/env python3
"""Makes tests/golden/frechet/expected.json: the Frechet distance of two samples of the same Gaussian, by numpy and scipy.

    python tools/golden/frechet.py OUT [--dim 128 512]      (needs numpy, scipy)

Both samples are RandomState(seed).standard_normal((20 D, D))[:N], seeds 1 and 2, times the square roots of the spectrum
lambda_i = 15 i^-0.8 / sum_j j^-0.8 (trace 15); N / D from .25 to 20. `nuclear`: numpy's singular values of X1c X2c^T, exact for
every N; `sqrtm`: the trace of scipy.linalg.sqrtm(S1 S2), what pytorch-fid and clean-fid print; `imaginary`: of that trace.
"""
import argparse
import json
import pathlib
from importlib.metadata import version

import numpy as np
from scipy.linalg import sqrtm

RATIOS = (0.25, 0.5, 1, 2, 5, 10, 20)


def spectrum(dim):
    decay = np.arange(1, dim + 1, dtype=np.float64) ** -0.8
    return 15 * decay / decay.sum()


def samples(dim, seed):
    return np.random.RandomState(seed).standard_normal((int(RATIOS[-1] * dim), dim)) * np.sqrt(spectrum(dim))


def nuclear(a, b):
    """Sum of the singular values of X1c X2c^T; QR first where there are more rows than columns."""
    a, b = a - a.mean(0), b - b.mean(0)
    if len(a) > a.shape[1]:
        a, b = np.linalg.qr(a, mode="r"), np.linalg.qr(b, mode="r")
    return np.linalg.svd(a @ b.T, compute_uv=False).sum()


def row(a, b):
    n = len(a)
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    base = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s1) + np.trace(s2)
    root = np.trace(sqrtm(s1 @ s2))
    return {"n": n, "nuclear": float(base - 2 * nuclear(a, b) / (n - 1)), "sqrtm": float(base - 2 * np.real(root)),
            "imaginary": float(np.imag(root))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--dim", type=int, nargs="+", default=[128, 512])
    args = parser.parse_args()
    tables = {}
    for dim in args.dim:
        a, b = samples(dim, 1), samples(dim, 2)
        tables[str(dim)] = [{"ratio": r, **row(a[:int(r * dim)], b[:int(r * dim)])} for r in RATIOS]
        for line in tables[str(dim)]:
            print(dim, line, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    versions = {p: version(p) for p in ("numpy", "scipy")}
    (args.out / "expected.json").write_text(json.dumps({"tables": tables, "versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
