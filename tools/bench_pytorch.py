#!/usr/bin/env python3
"""PyTorch's side of tools/bench_vs_pytorch.sh, and the driver: both sides work in turns on one machine.

The network is the llama form written plainly: F.rms_norm, SDPA, fused AdamW, a static key-value cache, and transformers'
`generate` for comparison. Nothing is timed before both sides agree on the loss and on the greedy tokens.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

STARTED = time.perf_counter()
import torch  # noqa: E402  (start-up is measured with its import)
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from bench_turns import Served, alternate, report  # noqa: E402

SIZES = dict(vocab_size=8192, hidden_size=512, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=8,
             num_key_value_heads=8, rms_norm_eps=1e-6, max_position_embeddings=512, rope_theta=10000.0)
HEADS, HEAD_DIM, EPS = 8, 64, 1e-6


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Norm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, EPS)


def linear(i, o):
    return nn.Linear(i, o, bias=False)


class Attention(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (linear(d, d) for _ in range(4))

    def forward(self, x, cos, sin, cache, past):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, HEADS, HEAD_DIM).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            cache[0][:, :, past:past + n] = k
            cache[1][:, :, past:past + n] = v
            k, v = cache[0][:, :, :past + n], cache[1][:, :, :past + n]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=n > 1)
        return self.o_proj(y.transpose(1, 2).reshape(b, n, d))


class Mlp(nn.Module):
    def __init__(self, d, m):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = linear(d, m), linear(d, m), linear(m, d)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, d, m):
        super().__init__()
        self.self_attn, self.mlp = Attention(d), Mlp(d, m)
        self.input_layernorm, self.post_attention_layernorm = Norm(d), Norm(d)

    def forward(self, x, cos, sin, cache=None, past=0):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, s):
        super().__init__()
        d = s["hidden_size"]
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(s["vocab_size"], d)
        self.model.layers = nn.ModuleList(Block(d, s["intermediate_size"]) for _ in range(s["num_hidden_layers"]))
        self.model.norm = Norm(d)
        self.lm_head = linear(d, s["vocab_size"])
        angle = torch.outer(torch.arange(s["max_position_embeddings"]).float(),
                            1 / s["rope_theta"] ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM))
        self.cos, self.sin = (torch.cat((f(angle), f(angle)), -1) for f in (torch.cos, torch.sin))

    def forward(self, ids, caches=None, past=0, last_only=False):
        n = ids.shape[1]
        cos, sin = self.cos[past:past + n], self.sin[past:past + n]
        x = self.model.embed_tokens(ids)
        for i, block in enumerate(self.model.layers):
            x = block(x, cos, sin, caches[i] if caches else None, past)
        return self.lm_head(self.model.norm(x[:, -1:] if last_only else x))


def fixed_ids(batch, length, vocab):
    return (torch.arange(batch * length) * 7919 % 8191 % vocab).view(batch, length)


class TorchSide:
    def __init__(self, folder, batch, length):
        from safetensors.torch import load_file
        self.model = Llama(SIZES)
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        self.ids = fixed_ids(batch, length, SIZES["vocab_size"])
        self.optimizer = None

    def forward(self):
        logits = self.model(self.ids)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), self.ids[:, 1:].flatten())

    def loss(self):
        with torch.inference_mode():
            return self.forward().item()

    def step(self):
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        wall, cpu = time.perf_counter(), time.process_time()
        loss = self.forward()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        loss.item()
        return time.perf_counter() - wall, time.process_time() - cpu

    @torch.inference_mode()
    def decode(self, prompt, count):
        next_ids, past, tokens = fixed_ids(1, prompt, SIZES["vocab_size"]), 0, []
        shape = (1, HEADS, prompt + count, HEAD_DIM)
        caches = [(torch.empty(shape), torch.empty(shape)) for _ in self.model.model.layers]
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            logits = self.model(next_ids, caches, past, last_only=True)
            past += next_ids.shape[1]
            next_ids = logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(next_ids.item())
        return time.perf_counter() - wall, time.process_time() - cpu, tokens


class HuggingFaceSide:
    def __init__(self, folder):
        from transformers import LlamaForCausalLM
        self.model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()

    @torch.inference_mode()
    def decode(self, prompt, count):
        ids = fixed_ids(1, prompt, SIZES["vocab_size"])
        wall, cpu = time.perf_counter(), time.process_time()
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                                  do_sample=False, pad_token_id=0, eos_token_id=None)
        return time.perf_counter() - wall, time.process_time() - cpu, out[0, prompt:].tolist()


class OurSide(Served):
    def __init__(self, binary, folder, batch, length):
        super().__init__([binary], f"load {folder} {batch} {length}")

    def step(self):
        return self.timed("train 1")

    def decode(self, prompt, count):
        a = self.ask(f"decode {prompt} {count}")
        return a["wall"], a["cpu"], a["tokens"]


def make_model(folder):
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    sizes = {k: v for k, v in SIZES.items() if k != "rope_theta"}
    model = LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters={"rope_theta": SIZES["rope_theta"], "rope_type": "default"},
                                         tie_word_embeddings=False))
    model.save_pretrained(folder)


def startup(command, environment, pairs_text):
    wall = time.perf_counter()
    usage = os.times()
    subprocess.run(command, input=pairs_text, env=environment, check=True, text=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return time.perf_counter() - wall, (after.children_user + after.children_system) - (usage.children_user + usage.children_system)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--only", nargs="*", default=["train", "decode", "generate", "startup", "profile"])
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--first-step", type=pathlib.Path, help="only: load this folder, make one training step, exit")
    args = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    torch.set_num_threads(threads)
    if args.first_step:
        TorchSide(args.first_step, args.batch, args.length).step()
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        make_model(folder)
        theirs, ours = TorchSide(folder, args.batch, args.length), OurSide(args.binary, folder, args.batch, args.length)
        print(f"torch {torch.__version__}, {threads} threads, {ours.info['parameters'] / 1e6:.1f} M parameters, batch {args.batch} x "
              f"{args.length} tokens", flush=True)
        rows = measure(args, threads, folder, ours, theirs)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(args, threads, folder, ours, theirs):
    rows = []
    a, b = ours.ask("loss")["loss"], theirs.loss()
    if abs(a - b) > 1e-4 * abs(b):
        sys.exit(f"the two sides compute different losses: {a} and {b}")
    print(f"losses agree: {a:.6f} {b:.6f}")
    if "decode" in args.only or "generate" in args.only:
        hf = HuggingFaceSide(folder)
        tokens = [side.decode(args.prompt, args.new)[2] for side in (ours, theirs, hf)]
        if not tokens[0] == tokens[1] == tokens[2]:
            agree = next(i for i in range(args.new) if len({t[i] for t in tokens}) > 1)
            sys.exit(f"greedy tokens differ from token {agree} on")
        print(f"greedy tokens agree: {args.new}")
        mine = lambda: ours.decode(args.prompt, args.new)
        if "decode" in args.only:
            rows.append(report("decode, static cache by hand", threads, *alternate(args.pairs, mine, lambda: theirs.decode(args.prompt, args.new))))
        if "generate" in args.only:
            rows.append(report("decode, transformers generate", threads, *alternate(args.pairs, mine, lambda: hf.decode(args.prompt, args.new))))
    if "train" in args.only:
        for _ in range(2):
            ours.step(), theirs.step()
        rows.append(report("training step", threads, *alternate(args.pairs, ours.step, theirs.step)))
    if "profile" in args.only:
        for name, s in ours.ask("profile 3").items():
            print(f"  {name:<24} {1e3 * s['wall']:8.1f} ms wall {1e3 * s['cpu']:8.1f} ms CPU")
    if "startup" in args.only:
        text = f"load {folder} {args.batch} {args.length}\ntrain 1\n"
        other = [sys.executable, __file__, "--binary", args.binary, "--first-step", str(folder), "--batch", str(args.batch),
                 "--length", str(args.length)]
        rows.append(report("start to end of first step", threads, *alternate(
            max(3, args.pairs // 3), lambda: startup([args.binary], os.environ, text), lambda: startup(other, os.environ, ""))))
    return rows


if __name__ == "__main__":
    main()
