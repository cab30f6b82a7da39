#!/usr/bin/env python3
"""Makes tests/golden/pairs: distances of image pairs by the packages that define them in practice.

    python tools/golden/pairs.py OUT      (needs torch, torchvision, scikit-image, torchmetrics, lpips 0.1.4, safetensors)

a.NAME, b.NAME: uint8 [3, H, W]. In expected.json by NAME: psnr, ssim (scikit-image), ssim_torchmetrics_inside (the mean of
torchmetrics' map over windows inside the image), ssim_torchmetrics (its own mean, over windows that reach over the border into
a reflection too: another number), lpips, lpips_baseline.
LPIPS is the package's own forward pass with the slim VGG16 of tests/golden/vgg16 as its network and random non-negative linear
layers, which are kept as OUT/lpips in the form of tools/convert_weights.py; the baseline is the package's lpips=False.
crop.H.W: where torchvision's CenterCrop(8) of an image of H x W begins (row, column).
"""
import argparse
import json
import pathlib
from importlib.metadata import version

import lpips
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.transforms import CenterCrop

VGG = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/vgg16"
SIZES = {"noise": (40, 37), "blur": (32, 48), "unrelated": (33, 33), "dark": (16, 21)}


def picture(height, width, seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([127 + 110 * np.sin(x / (3 + c) + y / 5 + seed) for c in range(3)], -1)
    base[height // 4:height // 2, width // 3:width // 2] = [250, 10, 60]
    return np.clip(base + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8)


def pairs():
    rng = np.random.default_rng(99)
    for seed, (name, (h, w)) in enumerate(SIZES.items()):
        a = picture(h, w, seed)
        if name == "noise":
            b = np.clip(a + rng.normal(0, 15, a.shape), 0, 255).astype(np.uint8)
        elif name == "blur":
            b = ((a.astype(int) + np.roll(a, 1, 0) + np.roll(a, 1, 1) + np.roll(a, -1, 1)) // 4).astype(np.uint8)
        elif name == "unrelated":
            b = picture(h, w, 50)
        else:
            b = a // 3
        yield name, a, b


def slim_lpips(linear, with_linear):
    """The package's module with a narrower network: every line of its forward pass is the package's."""
    model = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, lpips=with_linear, verbose=False)
    state = load_file(VGG / "model.safetensors")
    for part in (model.net.slice1, model.net.slice2, model.net.slice3, model.net.slice4, model.net.slice5):
        for place, layer in part.named_children():
            if isinstance(layer, torch.nn.Conv2d):
                weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
                slim = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
                slim.weight.data, slim.bias.data = weight, bias
                setattr(part, place, slim)
    if with_linear:
        for k, weight in enumerate(linear):
            model.lins[k].model[1].weight.data = weight.view(1, -1, 1, 1)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(4)
    state = load_file(VGG / "model.safetensors")
    linear = [torch.rand(state[f"features.{place}.bias"].shape[0]) for place in (2, 7, 14, 21, 28)]
    weighted, baseline = slim_lpips(linear, True), slim_lpips(linear, False)
    tensors, expected = {}, {}
    for name, a, b in pairs():
        ta, tb = (torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in (a, b))
        tensors[f"a.{name}"], tensors[f"b.{name}"] = ta, tb
        own_mean, full = structural_similarity_index_measure(ta[None].double(), tb[None].double(), data_range=255.0, return_full_image=True)
        la, lb = lpips.im2tensor(a), lpips.im2tensor(b)
        with torch.no_grad():
            expected[name] = {
                "psnr": peak_signal_noise_ratio(a, b, data_range=255),
                "ssim": structural_similarity(a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255),
                "ssim_torchmetrics_inside": full[..., 5:-5, 5:-5].mean().item(), "ssim_torchmetrics": own_mean.item(),
                "lpips": weighted(la, lb).item(), "lpips_baseline": baseline(la, lb).item()}
    for h, w in ((8, 8), (9, 11), (10, 13), (15, 12)):
        index = torch.arange(h * w).view(1, h, w)
        tensors[f"crop.{h}.{w}"] = torch.stack([CenterCrop(8)(index)[0, 0, 0] // w, CenterCrop(8)(index)[0, 0, 0] % w])
    (out / "lpips").mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "io.safetensors")
    save_file({f"lin{k}.weight": v for k, v in enumerate(linear)}, out / "lpips/model.safetensors")
    (out / "lpips/config.json").write_text(json.dumps({"architecture": "LPIPS linear layers", "network": "vgg16"}, indent=1) + "\n")
    versions = {p: version(p) for p in ("torch", "torchvision", "scikit-image", "torchmetrics", "lpips")}
    (out / "expected.json").write_text(json.dumps({"values": {n: {k: float(v) for k, v in e.items()} for n, e in expected.items()}, "versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
