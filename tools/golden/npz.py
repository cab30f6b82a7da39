#!/usr/bin/env python3
"""Makes tests/golden/io/*.npz: arrays of every kind that read_npz knows, stored and compressed.   python tools/golden/npz.py OUT"""
import pathlib
import sys

import numpy as np

out = pathlib.Path(sys.argv[1])
arrays = dict(mu=np.arange(5) / 8, sigma=np.arange(6, dtype=np.float64).reshape(2, 3), fortran=np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
              count=np.int64(42), flags=np.array([True, False]), bytes=np.arange(3, dtype=np.uint8), none=np.zeros((0, 4), np.int32), text=np.array(["not", "numbers"]))
np.savez(out / "stored.npz", **arrays)
np.savez_compressed(out / "compressed.npz", **arrays)
