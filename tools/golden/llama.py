#!/usr/bin/env python3
"""Makes a golden folder for `fewstep model verify` of a tiny LlamaForCausalLM, with ten losses of AdamW training.

    python tools/golden/llama.py OUT [--seed S] [--set key=value ...]      (needs torch, transformers, safetensors)

OUT gets config.json, model.safetensors, io.safetensors (input.*, expected.*: logits, loss, all gradients, their global
norm, and logits one token at a time through the key-value cache), case.json and losses.txt. Everything is float32 on one
thread with eager attention; tests/golden/llama is OUT of the defaults.
"""
import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

SIZES = dict(vocab_size=61, hidden_size=24, intermediate_size=52, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=6, rms_norm_eps=1e-5, max_position_embeddings=48)
TRAINING = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip_norm=1.0, steps=10)


def build(seed, overrides):
    torch.manual_seed(seed)
    config = LlamaConfig(**{**SIZES, **overrides}, attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():  # larger than the initial values: every path must matter
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name:
            p.data = 1 + 0.2 * noise
        elif p.ndim == 1:
            p.data = 0.2 * noise
        else:
            p.data = noise * (2.0 if "embed" in name else 1.0) / p.shape[-1] ** 0.5
    model.tie_weights()
    ids = torch.randint(0, config.vocab_size, (3, 17), generator=generator)
    return model, ids


def loss_of(model, ids):
    logits = model(input_ids=ids).logits
    return logits, torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def expectations(model, ids):
    logits, loss = loss_of(model, ids)
    loss.backward()
    out = {"input.input_ids": ids, "expected.logits": logits.detach().contiguous(), "expected.loss": loss.detach()}
    squares = 0.0
    for name, p in model.named_parameters():
        out["expected.grad." + name] = p.grad.contiguous()
        squares += p.grad.double().square().sum()
    out["expected.grad_global_norm"] = squares.sqrt().float()
    model.zero_grad()
    with torch.no_grad():
        cache, steps = DynamicCache(), []
        for t in range(ids.shape[1]):
            steps.append(model(input_ids=ids[:, t:t + 1], past_key_values=cache, use_cache=True).logits)
    out["expected.logits_cached"] = torch.cat(steps, 1).contiguous()
    return out


def ten_losses(model, ids):
    """AdamW on one fixed batch, weight decay on matrices only, gradients clipped to a global norm, constant rate."""
    t = TRAINING
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=t["weight_decay"]), dict(params=vectors, weight_decay=0.0)],
                                  lr=t["lr"], betas=t["betas"], eps=t["eps"])
    losses = []
    for _ in range(t["steps"]):
        _, loss = loss_of(model, ids)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), t["clip_norm"])
        optimizer.step()
        losses.append(loss.item())
    return losses


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    overrides = {k: json.loads(v) for k, v in (item.split("=", 1) for item in args.set)}
    model, ids = build(args.seed, overrides)
    io = expectations(model, ids)
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    (args.out / "generation_config.json").unlink(missing_ok=True)
    save_file(io, args.out / "io.safetensors")
    case = {"class": "transformers.LlamaForCausalLM", "seed": args.seed, "torch": torch.__version__, "training": TRAINING,
            "notes": "loss: mean cross-entropy of logits[:, :-1] against input_ids[:, 1:]; losses.txt: AdamW steps on that batch"}
    (args.out / "case.json").write_text(json.dumps(case, indent=1) + "\n")
    (args.out / "losses.txt").write_text("".join(f"{x:.9f}\n" for x in ten_losses(model, ids)))


if __name__ == "__main__":
    main()
