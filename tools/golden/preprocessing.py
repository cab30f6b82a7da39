#!/usr/bin/env python3
"""Makes tests/golden/preprocessing: images of odd sizes, and what each reference package makes of them before its network.

    python tools/golden/preprocessing.py OUT
    (needs torch, torchvision, clean-fid, torch-fidelity, transformers, Pillow below 13, safetensors; versions go into OUT/versions.json)

input.NAME: uint8 [3, H, W], smooth with edges and noise. expected.PIPELINE.NAME.SIDE: float32 or uint8 [3, SIDE, SIDE], from the
package's own code at another size than 299, so that the files stay small; both up- and downscaling.
"""
import argparse
import json
import pathlib
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from cleanfid.resize import make_resizer
from PIL import Image
from safetensors.torch import save_file
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision import transforms as T
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as CLIPImageProcessor

SIZES = {"tall": (61, 40), "wide": (47, 90), "odd": (33, 34), "square": (24, 24)}
SIDES = (37, 20)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def image(name, seed):
    height, width = SIZES[name]
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([127 + 120 * np.sin(x / (3 + c) + y / 7) for c in range(3)], -1)
    base[height // 4:height // 2, width // 3:width // 2] = [255, 0, 40]
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def normalise(x, statistics, white=1.0):
    mean, std = (torch.tensor(v).view(3, 1, 1) * white for v in statistics)
    return (x - mean) / std


def references(array, side):
    chw = torch.from_numpy(array.transpose(2, 0, 1).copy())
    picture = Image.fromarray(array)
    clean = torch.from_numpy(make_resizer("PIL", False, "bicubic", (side, side))(array).transpose(2, 0, 1).copy())
    tf1 = interpolate_bilinear_2d_like_tensorflow1x(chw[None].float(), size=(side, side), align_corners=False)[0]
    crop = T.functional.center_crop
    openai = T.Compose([T.Resize(side, T.InterpolationMode.BICUBIC), T.CenterCrop(side), T.ToTensor(), T.Normalize(*CLIP)])
    hf = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, resample=3, image_mean=CLIP[0], image_std=CLIP[1])
    h, w = array.shape[:2]
    s = min(h, w)
    square = picture.crop(((w - s) // 2, (h - s) // 2, (w - s) // 2 + s, (h - s) // 2 + s)).resize((side, side), Image.BICUBIC)
    return {
        "clean": (clean - 128) / 128,
        "pytorch-fid": 2 * F.interpolate(chw[None].float() / 255, size=(side, side), mode="bilinear", align_corners=False)[0] - 1,
        "tf-legacy": (tf1 - 128) / 128,
        "torchmetrics": (F.interpolate(chw[None].float(), size=(side, side), mode="bilinear", align_corners=False, antialias=True)[0] - 128) / 128,
        "vgg": normalise(tf1, IMAGENET, 255.0),
        "dinov2": normalise(clean / 255, IMAGENET),
        "clip-torchvision": openai(picture),
        "clip-transformers": torch.from_numpy(np.asarray(hf(picture)["pixel_values"][0]).copy()),
        "clip-square_first": normalise(T.functional.to_tensor(square), CLIP),
        "lanczos": torch.from_numpy(np.asarray(crop(picture, [s, s]).resize((side, side), Image.LANCZOS)).transpose(2, 0, 1).copy()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    tensors = {}
    for seed, name in enumerate(SIZES):
        array = image(name, seed)
        tensors[f"input.{name}"] = torch.from_numpy(array.transpose(2, 0, 1).copy())
        for side in SIDES:
            for pipeline, value in references(array, side).items():
                tensors[f"expected.{pipeline}.{name}.{side}"] = value.contiguous() if value.dtype == torch.uint8 else value.float().contiguous()
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "io.safetensors")
    packages = ("torch", "torchvision", "clean-fid", "torch-fidelity", "transformers", "pillow")
    (out / "versions.json").write_text(json.dumps({p: version(p) for p in packages}, indent=1) + "\n")


if __name__ == "__main__":
    main()
