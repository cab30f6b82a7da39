#!/usr/bin/env python3
"""Makes a golden folder for `fewstep model verify` of a tiny diffusers VQModel.

    python tools/golden/vq_model.py OUT [--seed S] [--set key=value ...]      (needs torch, diffusers, safetensors)

expected.*: latents before quantisation, indices, codes, sample (decoded codes), decoded (decoder on the unquantised
latents), loss = mean(decoded^2) and its gradients for everything but the codebook. tests/golden/vq_model is OUT of the
defaults.
"""
import argparse
import json
import pathlib

import torch
from diffusers import VQModel
from safetensors.torch import save_file

SIZES = dict(in_channels=1, out_channels=1, block_out_channels=[4, 8], norm_num_groups=2, latent_channels=4,
             vq_embed_dim=3, num_vq_embeddings=16, sample_size=16)


def build(seed, overrides):
    torch.manual_seed(seed)
    sizes = {**SIZES, **overrides}
    stages = len(sizes["block_out_channels"])
    model = VQModel(down_block_types=["DownEncoderBlock2D"] * stages, up_block_types=["UpDecoderBlock2D"] * stages, **sizes).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1:
            p.data = (1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.2 * noise
        else:
            p.data = noise / p[0].numel() ** 0.5
    model.quantize.embedding.weight.data = torch.randn(model.quantize.embedding.weight.shape, generator=generator)
    side = sizes["sample_size"]
    return model, torch.rand(2, sizes["in_channels"], side, side + side // 2, generator=generator) * 2 - 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, images = build(args.seed, {k: json.loads(v) for k, v in (item.split("=", 1) for item in args.set)})
    latents = model.encode(images).latents
    codes, _, (_, _, indices) = model.quantize(latents.detach())
    batch, _, height, width = latents.shape
    decoded = model.decode(latents, force_not_quantize=True).sample
    loss = decoded.square().mean()
    loss.backward()
    io = {"input.sample": images, "expected.latents": latents.detach(), "expected.decoded": decoded.detach(),
          "expected.indices": indices.view(batch, height, width), "expected.codes": codes.detach(),
          "expected.sample": model.decode(codes.detach(), force_not_quantize=True).sample.detach(), "expected.loss": loss.detach()}
    squares = 0.0
    for name, p in model.named_parameters():
        if name.startswith("quantize."):
            continue
        if not name.endswith("to_k.bias"):  # zero but for rounding: softmax does not see a constant in the keys
            io["expected.grad." + name] = p.grad
        squares += p.grad.double().square().sum()
    io["expected.grad_global_norm"] = squares.sqrt().float()
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    save_file({k: v.contiguous() for k, v in io.items()}, args.out / "io.safetensors")
    case = {"class": "diffusers.VQModel", "seed": args.seed, "torch": torch.__version__}
    (args.out / "case.json").write_text(json.dumps(case, indent=1) + "\n")


if __name__ == "__main__":
    main()
