#!/usr/bin/env python3
"""Makes golden folders for `fewstep model verify` of tiny diffusers UNet2DConditionModels.

    python tools/golden/diffusion.py OUT --form NAME [--seed S] [--set key=value ...]      (needs torch, diffusers, safetensors)

Forms: sdxl (text_time, depth lists; tests/golden/unet2d), conv (no attention; tests/golden/unet2d_conv), refiner
(four levels, five numbers), sd15 (1 x 1 convolutions around transformers, no additions), sd2 (linear, no additions), label
(a context of one token, numbers without a pooled text), odd (sizes that halving does not divide), scale_shift. --set changes
any key of the config, or batch, height, width, length, pooled (the width), gradients (all or few).

io.safetensors: input.sample, timestep, encoder_hidden_states, text_embeds, time_ids, target; expected.time_emb, add_emb,
mid_block, sample, mse_loss = mean((sample - target)^2), grad.* and grad_global_norm of it. float32, one thread, eval mode.
"""
import argparse
import json
import pathlib

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

CROSS_DOWN, CROSS_UP, DOWN, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "DownBlock2D", "UpBlock2D"
SDXL = dict(block_out_channels=[4, 6, 6], down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN], up_block_types=[CROSS_UP, CROSS_UP, UP],
            layers_per_block=1, norm_num_groups=2, transformer_layers_per_block=[1, 1, 2], attention_head_dim=[1, 3, 2],
            cross_attention_dim=10, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 + 6 * 8, sample_size=8)
NO_ADDITION = dict(addition_embed_type=None, addition_time_embed_dim=None, projection_class_embeddings_input_dim=None)
FORMS = {
    "sdxl": dict(height=12, width=16),
    "conv": dict(NO_ADDITION, block_out_channels=[4, 6], down_block_types=[DOWN, DOWN], up_block_types=[UP, UP], mid_block_type="UNetMidBlock2D",
                 transformer_layers_per_block=1, attention_head_dim=1, layers_per_block=2, in_channels=3, out_channels=3),
    "refiner": dict(block_out_channels=[8, 16, 24, 24], down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
                    up_block_types=[UP, CROSS_UP, CROSS_UP, UP], transformer_layers_per_block=2, layers_per_block=2, attention_head_dim=[1, 2, 3, 3],
                    projection_class_embeddings_input_dim=6 + 5 * 8, height=16, width=24),
    "sd15": dict(NO_ADDITION, block_out_channels=[8, 16, 24, 24], down_block_types=[CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
                 up_block_types=[UP, CROSS_UP, CROSS_UP, CROSS_UP], transformer_layers_per_block=1, layers_per_block=2, attention_head_dim=8,
                 use_linear_projection=False, height=16, width=16),
    "sd2": dict(NO_ADDITION, block_out_channels=[8, 12, 16], down_block_types=[CROSS_DOWN, CROSS_DOWN, DOWN],
                up_block_types=[UP, CROSS_UP, CROSS_UP], attention_head_dim=[2, 3, 4],
                upcast_attention=True, transformer_layers_per_block=1),
    "label": dict(length=1, pooled=0, projection_class_embeddings_input_dim=4 * 8),
    "odd": dict(height=11, width=7, freq_shift=1, flip_sin_to_cos=False, layers_per_block=[1, 2, 1], center_input_sample=True, conv_in_kernel=1),
    "scale_shift": dict(resnet_time_scale_shift="scale_shift", attention_head_dim=[2, 3, 1], transformer_layers_per_block=[0, 3, 1]),
}
INPUTS = ("batch", "height", "width", "length", "pooled", "gradients")


def build(form, seed, overrides):
    sizes = {**SDXL, **FORMS[form], **overrides}
    inputs = {k: sizes.pop(k, d) for k, d in zip(INPUTS, (2, 8, 12, 5, 6, "all"))}
    model = UNet2DConditionModel(**sizes).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():  # larger than the initial values: every path must matter
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1:
            p.data = (1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.1 * noise
        else:
            p.data = noise / p[0].numel() ** 0.5
    return model, inputs, generator


def make_inputs(model, inputs, generator):
    def random(*shape):
        return torch.randn(shape, generator=generator)
    c, batch = model.config, inputs["batch"]
    out = dict(sample=random(batch, c.in_channels, inputs["height"], inputs["width"]), timestep=torch.randint(0, 1000, (batch,), generator=generator),
               encoder_hidden_states=random(batch, inputs["length"], c.cross_attention_dim),
               target=random(batch, c.out_channels, inputs["height"], inputs["width"]))
    if c.addition_embed_type == "text_time":
        count = (c.projection_class_embeddings_input_dim - inputs["pooled"]) // c.addition_time_embed_dim
        out["time_ids"] = torch.randint(0, 2048, (batch, count), generator=generator).float()
        if inputs["pooled"] > 0:
            out["text_embeds"] = random(batch, inputs["pooled"])
    return out


def run(model, x):
    expected, hooks = {}, []
    for name, key in (("time_embedding", "time_emb"), ("add_embedding", "add_emb"), ("mid_block", "mid_block")):
        if getattr(model, name, None) is not None:
            hooks.append(getattr(model, name).register_forward_hook(lambda m, i, o, key=key: expected.__setitem__(key, o.detach())))
    added = None
    if "time_ids" in x:
        added = dict(time_ids=x["time_ids"], text_embeds=x.get("text_embeds", torch.zeros(len(x["sample"]), 0)))
    sample = model(x["sample"], x["timestep"], encoder_hidden_states=x["encoder_hidden_states"], added_cond_kwargs=added).sample
    loss = F.mse_loss(sample, x["target"])
    loss.backward()
    for hook in hooks:
        hook.remove()
    return dict(expected, sample=sample.detach(), mse_loss=loss.detach())


def cancels(name, length):
    """Zero but for rounding: with one key the softmax is 1, whatever the query and the key are."""
    return length == 1 and ("attn2.to_q" in name or "attn2.to_k" in name or ".norm2." in name and "transformer_blocks" in name)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--form", choices=FORMS, required=True)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, inputs, generator = build(args.form, args.seed, {k: json.loads(v) for k, v in (item.split("=", 1) for item in args.set)})
    x = make_inputs(model, inputs, generator)
    expected = run(model, x)
    io = {"input." + k: v for k, v in x.items()} | {"expected." + k: v for k, v in expected.items()}
    squares = 0.0
    for i, (name, p) in enumerate(model.named_parameters()):
        squares += p.grad.double().square().sum()
        if not cancels(name, inputs["length"]) and (inputs["gradients"] == "all" or i % 7 == 0):
            io["expected.grad." + name] = p.grad
    io["expected.grad_global_norm"] = squares.sqrt().float()
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    save_file({k: v.contiguous() for k, v in io.items()}, args.out / "io.safetensors")
    case = {"class": "diffusers.UNet2DConditionModel", "form": args.form, "seed": args.seed, "torch": torch.__version__}
    (args.out / "case.json").write_text(json.dumps(case, indent=1) + "\n")
    print(args.out, sum(p.numel() for p in model.parameters()), "parameters")


if __name__ == "__main__":
    main()
