#!/usr/bin/env python3
"""diffusers' side of tools/bench_vs_diffusers.sh, and the driver: both sides work in turns on one machine.

Nothing is timed before both sides agree on the loss and on the loss after a training step. Both clip gradients and use a fused
AdamW. Reports medians of the ratio of each pair.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings

warnings.filterwarnings("ignore")
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from bench_turns import Served, alternate, report  # noqa: E402

DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
SIZES = dict(sample_size=32, block_out_channels=[128, 256, 384], down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN],
             up_block_types=[CROSS_UP, CROSS_UP, UP], layers_per_block=2, transformer_layers_per_block=[1, 1, 2],
             attention_head_dim=[2, 4, 6], cross_attention_dim=512, use_linear_projection=True, addition_embed_type="text_time",
             addition_time_embed_dim=256, projection_class_embeddings_input_dim=512 + 6 * 256)
MIB = 1 << 20


def make_case(folder, batch, side, length):
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file
    torch.manual_seed(0)
    model = UNet2DConditionModel(**SIZES)
    model.save_pretrained(folder)
    save_file(dict(sample=torch.randn(batch, 4, side, side), timestep=torch.randint(0, 1000, (batch,)),
                   encoder_hidden_states=torch.randn(batch, length, SIZES["cross_attention_dim"]), text_embeds=torch.randn(batch, 512),
                   time_ids=torch.randint(0, 1024, (batch, 6)).float(), target=torch.randn(batch, 4, side, side)), folder / "inputs.safetensors")


def peak_resident():
    # Not getrusage: its maximum survives exec, and would be the parent's.
    line = next(x for x in pathlib.Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class DiffusersSide:
    def __init__(self, folder):
        from diffusers import UNet2DConditionModel
        from safetensors.torch import load_file
        self.model = UNet2DConditionModel.from_pretrained(folder).train()
        self.inputs = load_file(folder / "inputs.safetensors")
        self.optimizer = None

    def forward(self):
        i = self.inputs
        return self.model(i["sample"], i["timestep"], encoder_hidden_states=i["encoder_hidden_states"],
                          added_cond_kwargs=dict(text_embeds=i["text_embeds"], time_ids=i["time_ids"])).sample

    def loss(self):
        with torch.inference_mode():
            return F.mse_loss(self.forward(), self.inputs["target"]).item()

    def step(self):
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
        wall, cpu = time.perf_counter(), time.process_time()
        loss = F.mse_loss(self.forward(), self.inputs["target"])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        loss.item()
        return time.perf_counter() - wall, time.process_time() - cpu

    @torch.inference_mode()
    def pass_forward(self):
        wall, cpu = time.perf_counter(), time.process_time()
        self.forward()
        return time.perf_counter() - wall, time.process_time() - cpu


class OurSide(Served):
    def __init__(self, binary, folder):
        super().__init__([binary, "--serve"], f"load {folder}")

    def step(self):
        return self.timed("train 1 0")

    def step_recompute(self):
        return self.timed("train 1 1")

    def pass_forward(self):
        return self.timed("forward 1")

    def loss(self):
        return self.ask("loss")["loss"]


def check(ours, theirs):
    """The same loss before a step and after it, to float32's precision: the step is the same too."""
    for moment in ("before", "after"):
        a, b = ours.loss(), theirs.loss()
        if abs(a - b) > 1e-4 * abs(b):
            sys.exit(f"the two sides compute different losses {moment} a training step: {a} and {b}")
        print(f"losses {moment} a step agree: {a:.6f} {b:.6f}")
        if moment == "before":
            ours.step(), theirs.step()


def memory(args, folder):
    """Peak resident size of a fresh process on each side that makes three training steps, recompute off and on on ours."""
    def ours(recompute):
        side = OurSide(args.binary, folder)
        side.ask(f"train 3 {recompute}")
        return side.ask("memory")["peak"]
    other = [sys.executable, __file__, "--binary", args.binary, "--memory-of", str(folder)]
    theirs = int(subprocess.run(other, check=True, text=True, stdout=subprocess.PIPE).stdout.split()[-1])
    row = dict(name="peak memory", ours=ours(0), ours_recompute=ours(1), theirs=theirs)
    row["ratio"] = row["ours"] / theirs
    print(f"peak memory of the process   ours {row['ours'] / MIB:.0f} MiB, with recompute {row['ours_recompute'] / MIB:.0f} MiB, theirs "
          f"{theirs / MIB:.0f} MiB: ratio {row['ratio']:.3f}", flush=True)
    return row


def activations(ours):
    plain, again = ours.ask("activations 0"), ours.ask("activations 1")
    row = dict(name="activations", plain=plain, recompute=again, kept_ratio=again["kept"] / plain["kept"], peak_ratio=again["peak"] / plain["peak"])
    print(f"activations                  kept {plain['kept'] / MIB:.0f} -> {again['kept'] / MIB:.0f} MiB with recompute: {row['kept_ratio']:.3f}; "
          f"at most {plain['peak'] / MIB:.0f} -> {again['peak'] / MIB:.0f} MiB: {row['peak_ratio']:.3f}", flush=True)
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--length", type=int, default=77)
    parser.add_argument("--only", nargs="*", default=["train", "forward", "recompute", "memory"])
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--memory-of", type=pathlib.Path, help="only: load this folder, make three training steps, print the peak memory")
    args = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    torch.set_num_threads(threads)
    if args.memory_of:
        side = DiffusersSide(args.memory_of)
        for _ in range(3):
            side.step()
        print(peak_resident())
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        make_case(folder, args.batch, args.side, args.length)
        theirs, ours = DiffusersSide(folder), OurSide(args.binary, folder)
        print(f"torch {torch.__version__}, {threads} threads, {ours.info['parameters'] / 1e6:.1f} M parameters, batch {args.batch} of {args.side} x "
              f"{args.side} latents, {ours.info['forward_flops'] / 1e9:.1f} GFLOP forward", flush=True)
        rows = measure(args, threads, folder, ours, theirs)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(args, threads, folder, ours, theirs):
    rows = []
    check(ours, theirs)
    for _ in range(2):
        ours.step(), theirs.step(), ours.pass_forward(), theirs.pass_forward()
    if "train" in args.only:
        rows.append(report("training step", threads, *alternate(args.pairs, ours.step, theirs.step)))
    if "forward" in args.only:
        rows.append(report("forward pass", threads, *alternate(args.pairs, ours.pass_forward, theirs.pass_forward)))
    if "recompute" in args.only:
        ours.step_recompute()
        rows.append(report("recompute against plain", threads, *alternate(args.pairs, ours.step_recompute, ours.step), "recompute", "plain"))
        rows.append(activations(ours))
    if "memory" in args.only:
        rows.append(memory(args, folder))
    return rows


if __name__ == "__main__":
    main()
