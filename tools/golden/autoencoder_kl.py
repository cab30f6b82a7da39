#!/usr/bin/env python3
"""Makes a golden folder for `fewstep model verify` of a tiny diffusers AutoencoderKL.

    python tools/golden/autoencoder_kl.py OUT [--seed S] [--set key=json ...]     (needs torch, diffusers, safetensors)

input.*: image, latent (not scaled), noise. expected.*: moments of the posterior, the scaled latent of its mode as the
pipelines of diffusers scale it and that undone, the decoded latent; reconstruction = the decoded sample of the
posterior, loss = mean(reconstruction^2) + mean(kl) / 100 and its gradients. tests/golden/autoencoder_kl is OUT of the
defaults.
"""
import argparse
import json
import pathlib

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

SIZES = dict(in_channels=3, out_channels=3, block_out_channels=[4, 8], norm_num_groups=2, latent_channels=4,
             layers_per_block=1, sample_size=16, scaling_factor=0.13025, shift_factor=0.2)


def build(seed, overrides):
    torch.manual_seed(seed)
    sizes = {**SIZES, **overrides}
    stages = len(sizes["block_out_channels"])
    model = AutoencoderKL(down_block_types=["DownEncoderBlock2D"] * stages, up_block_types=["UpDecoderBlock2D"] * stages, **sizes).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1:
            p.data = (1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.2 * noise
        else:
            p.data = noise / p[0].numel() ** 0.5
    side, factor = sizes["sample_size"], 2 ** (stages - 1)
    latent = (2, sizes["latent_channels"], side // factor, (side + side // 2) // factor)
    return model, {"image": torch.rand(2, sizes["in_channels"], side, side + side // 2, generator=generator) * 2 - 1,
                   "latent": torch.randn(latent, generator=generator), "noise": torch.randn(latent, generator=generator)}


def scaled(model, z):
    c = model.config
    if c.latents_mean is not None and c.latents_std is not None:
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (c.latents_mean, c.latents_std))
        return (z - mean) * c.scaling_factor / std
    return (z - (c.shift_factor or 0)) * c.scaling_factor


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, inputs = build(args.seed, {k: json.loads(v) for k, v in (item.split("=", 1) for item in args.set)})
    posterior = model.encode(inputs["image"]).latent_dist
    reconstruction = model.decode(posterior.mean + posterior.std * inputs["noise"]).sample
    loss = reconstruction.square().mean() + posterior.kl().mean() / 100
    loss.backward()
    io = {"input." + name: tensor for name, tensor in inputs.items()}
    io |= {"expected.posterior_mean": posterior.mean, "expected.posterior_logvar": posterior.logvar,
           "expected.posterior_std": posterior.std, "expected.posterior_kl": posterior.kl(),
           "expected.scaled_latent_of_mode": scaled(model, posterior.mode()), "expected.unscaled": posterior.mode(),
           "expected.decoded": model.decode(inputs["latent"]).sample, "expected.reconstruction": reconstruction,
           "expected.loss": loss}
    squares = 0.0
    for name, p in model.named_parameters():
        if not name.endswith("to_k.bias"):  # zero but for rounding: softmax does not see a constant in the keys
            io["expected.grad." + name] = p.grad
        squares += p.grad.double().square().sum()
    io["expected.grad_global_norm"] = squares.sqrt().float()
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    save_file({k: v.detach().clone().contiguous() for k, v in io.items()}, args.out / "io.safetensors")
    case = {"class": "diffusers.AutoencoderKL", "seed": args.seed, "torch": torch.__version__}
    (args.out / "case.json").write_text(json.dumps(case, indent=1) + "\n")


if __name__ == "__main__":
    main()
