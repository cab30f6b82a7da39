#!/usr/bin/env python3
"""Makes a golden folder for `fewstep model verify` of a small FeatureDiscriminator, and spectral norms beside it.

    python tools/golden/discriminator.py OUT      (needs torch, safetensors)

The network is written here from the papers (StyleGAN-T, arXiv 2301.09515; Miyato et al. 2018) over
torch.nn.utils.spectral_norm. expected.*: logits in eval mode, then one pass in training mode: train_logits, loss = mean of
their squares, after.* = buffers after it, grad.* of parameters and grad_tap* of the inputs. spectral.safetensors: Linear,
Conv1d, Conv2d under spectral_norm: weights, u, v, and outputs of three training passes and one eval pass.
tests/golden/feature_discriminator is OUT.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import spectral_norm

CONFIG = dict(_class_name="FeatureDiscriminator", channels=[6, 8], head="stylegan_t", norm="batch_local", virtual_batch=2,
              norm_groups=2, kernel=9, text_width=5, projection_width=4)


class BatchNormLocal(nn.Module):
    """Samples in runs of `virtual`; mean and biased variance over a run and its positions."""

    def __init__(self, channels, virtual):
        super().__init__()
        self.virtual = virtual
        self.weight = nn.Parameter(1 + 0.2 * torch.randn(channels))
        self.bias = nn.Parameter(0.2 * torch.randn(channels))

    def forward(self, x):
        parts = [nn.functional.batch_norm(part, None, None, self.weight, self.bias, training=True) for part in x.split(self.virtual)]
        return torch.cat(parts)


class Block(nn.Module):
    def __init__(self, channels, kernel, virtual):
        super().__init__()
        self.conv = spectral_norm(nn.Conv1d(channels, channels, kernel, padding=kernel // 2, padding_mode="circular"))
        self.norm = BatchNormLocal(channels, virtual)

    def forward(self, x):
        return nn.functional.leaky_relu(self.norm(self.conv(x)), 0.2)


class Head(nn.Module):
    def __init__(self, channels, c):
        super().__init__()
        self.first = Block(channels, 1, c["virtual_batch"])
        self.residual = Block(channels, c["kernel"], c["virtual_batch"])
        self.classify = spectral_norm(nn.Conv1d(channels, c["projection_width"], 1))
        self.project = nn.Linear(c["text_width"], c["projection_width"])

    def forward(self, x, text):
        h = self.first(x)
        out = self.classify((self.residual(h) + h) / 2**0.5)
        return (out * self.project(text)[:, :, None]).sum(1) / out.shape[1] ** 0.5


class Discriminator(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = nn.ModuleList(Head(channels, c) for channels in c["channels"])

    def forward(self, taps, text):
        return torch.cat([head(x, text) for head, x in zip(self.heads, taps)], 1)


def plain(tensors):
    return {name: t.detach().clone().contiguous() for name, t in tensors.items()}


def spectral():
    out = {}
    for name, layer, x in (("linear", nn.Linear(5, 7), torch.randn(3, 5)), ("conv1d", nn.Conv1d(4, 6, 3, padding=1), torch.randn(2, 4, 9)),
                           ("conv2d", nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.randn(2, 3, 8, 6))):
        layer = spectral_norm(layer).train()
        out |= {f"{name}.before.{k}": v for k, v in plain(layer.state_dict()).items()} | {f"{name}.x": x}
        for step in range(3):
            y = layer(x)
            out[f"{name}.y{step}"] = y.detach().clone()
        y.square().sum().backward()
        out[f"{name}.grad"] = layer.weight_orig.grad.clone()
        out |= {f"{name}.after.{k}": v for k, v in plain(layer.state_dict()).items() if k in ("weight_u", "weight_v")}
        out[f"{name}.y_eval"] = layer.eval()(x).detach().clone()
    return out


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(7)
    model = Discriminator(CONFIG)
    save_file(plain(model.state_dict()), out / "diffusion_pytorch_model.safetensors")
    taps = [torch.randn(4, channels, length).requires_grad_() for channels, length in zip(CONFIG["channels"], (12, 9))]
    text = torch.randn(4, CONFIG["text_width"])
    io = {f"input.tap{i}": x for i, x in enumerate(taps)} | {"input.text": text}
    io["expected.logits"] = model.eval()(taps, text)
    logits = model.train()(taps, text)
    loss = logits.square().mean()
    loss.backward()
    io |= {"expected.train_logits": logits, "expected.loss": loss}
    io |= {f"expected.after.{name}": b for name, b in model.named_buffers()}
    io |= {f"expected.grad_tap{i}": x.grad for i, x in enumerate(taps)}
    for name, p in model.named_parameters():
        if not name.endswith("conv.bias"):  # zero but for rounding: the norm takes the mean away
            io[f"expected.grad.{name}"] = p.grad
    save_file(plain(io), out / "io.safetensors")
    save_file(spectral(), out / "spectral.safetensors")
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


if __name__ == "__main__":
    main()
