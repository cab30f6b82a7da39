#!/usr/bin/env python3
"""PyTorch's side of tools/bench_distillation.sh, and the driver: both sides work in turns on one machine.

A cycle of DMD2 with update ratio 2 on the same networks and the same given noise: rollout, student's turn (fake score, guided teacher
in one call of twice the batch, pseudo-loss, backward, clip, fused AdamW, moving average), the fake score's turn on those samples, then a
second rollout and turn. Nothing is timed before both sides agree on both losses, before a cycle and after it.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

warnings.filterwarnings("ignore")
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

SIZES = dict(sample_size=16, in_channels=4, out_channels=4, block_out_channels=[48, 72], layers_per_block=1,
             down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], mid_block_type="UNetMidBlock2DCrossAttn",
             up_block_types=["UpBlock2D", "UpBlock2D"], attention_head_dim=4, norm_num_groups=8, cross_attention_dim=128,
             use_linear_projection=True, resnet_time_scale_shift="scale_shift")
RUNG, SCALE, TIMESTEPS = 0.7, 1.5, 1000.0
MIB = 1 << 20


def make_case(folder, batch):
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file
    torch.manual_seed(0)
    UNet2DConditionModel(**SIZES).save_pretrained(folder)
    shape = (batch, 4, 16, 16)
    levels = lambda: torch.rand(batch) * 0.96 + 0.02  # noqa: E731
    save_file(dict(x_T=torch.randn(shape), x_T2=torch.randn(shape), noise=torch.randn(shape), critic_noise0=torch.randn(shape),
                   critic_noise1=torch.randn(shape), context=torch.randn(batch, 16, 128), null=torch.randn(batch, 16, 128), t=levels(),
                   critic_t0=levels(), critic_t1=levels()), folder / "inputs.safetensors")


def adamw(model, lr):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW([dict(params=decayed, weight_decay=0.01), dict(params=plain, weight_decay=0.0)], lr=lr, betas=(0.0, 0.999),
                             fused=True)


class TorchSide:
    def __init__(self, folder):
        from diffusers import UNet2DConditionModel
        from safetensors.torch import load_file
        self.inputs = load_file(folder / "inputs.safetensors")
        self.teacher, self.student, self.fake = (UNet2DConditionModel.from_pretrained(folder) for _ in range(3))
        self.teacher.requires_grad_(False).eval()
        with torch.no_grad():  # a fake score that has learnt something: equal to the teacher, the student's loss would be rounding
            for p in self.fake.parameters():
                p.mul_(1.05)
        self.student.train(), self.fake.train()
        self.of_student, self.of_fake = adamw(self.student, 2e-5), adamw(self.fake, 4e-5)
        self.average = [p.detach().clone() for p in self.student.parameters()]

    @staticmethod
    def call(network, x, t, context):
        return network(x, t, encoder_hidden_states=context).sample

    def generate(self, x_T, grad):
        c = self.inputs["context"]
        ones = torch.ones(x_T.shape[0])
        with torch.no_grad():
            x0 = x_T - self.call(self.student, x_T, ones * TIMESTEPS, c)
            x = (1 - RUNG) * x0 + RUNG * x_T
        with torch.set_grad_enabled(grad):
            return x - RUNG * self.call(self.student, x, ones * RUNG * TIMESTEPS, c)

    def student_loss(self, x0):
        i = self.inputs
        s = i["t"].view(-1, 1, 1, 1)
        with torch.no_grad():
            x_t, t = (1 - s) * x0.detach() + s * i["noise"], i["t"] * TIMESTEPS
            fake = x_t - s * self.call(self.fake, x_t, t, i["context"])
            conditional, free = self.call(self.teacher, torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([i["context"], i["null"]])).chunk(2)
            real = x_t - s * (free + SCALE * (conditional - free))
            gradient = (fake - real) / (x0 - real).abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
        return 0.5 * F.mse_loss(x0, (x0 - gradient).detach())

    def fake_loss(self, x0, turn):
        i = self.inputs
        t, noise = i[f"critic_t{turn}"], i[f"critic_noise{turn}"]
        s = t.view(-1, 1, 1, 1)
        return F.mse_loss(self.call(self.fake, (1 - s) * x0 + s * noise, t * TIMESTEPS, i["context"]), noise - x0)

    @staticmethod
    def update(loss, network, optimizer):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()

    def losses(self):
        with torch.no_grad():
            x0 = self.generate(self.inputs["x_T"], False)
            return dict(student=self.student_loss(x0).item(), fake=self.fake_loss(x0, 0).item())

    def cycle(self):
        wall, cpu = time.perf_counter(), time.process_time()
        x0 = self.generate(self.inputs["x_T"], True)
        self.update(self.student_loss(x0), self.student, self.of_student)
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.student.parameters()), 0.01)
        self.update(self.fake_loss(x0.detach(), 0), self.fake, self.of_fake)
        self.update(self.fake_loss(self.generate(self.inputs["x_T2"], False), 1), self.fake, self.of_fake)
        return time.perf_counter() - wall, time.process_time() - cpu


class OurSide:
    def __init__(self, binary, folder=None):
        self.process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.info = self.ask(f"load {folder}") if folder else {}

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"bench_distillation stopped at '{line}'")
        return json.loads(answer)

    def losses(self):
        return self.ask("losses")

    def cycle(self):
        a = self.ask("cycle 1")
        return a["wall"][0], a["cpu"][0]


def check(ours, theirs):
    """The same losses before a cycle and after it, to float32's precision: the updates are the same too."""
    for moment in ("before", "after"):
        a, b = ours.losses(), theirs.losses()
        for name in a:
            # After one: Adam without momentum moves every weight by lr, whatever the size of its gradient, rounding included.
            if abs(a[name] - b[name]) > (1e-4 if moment == "before" else 1e-3) * abs(b[name]):
                sys.exit(f"the two sides compute different losses {moment} a cycle, {name}: {a[name]} and {b[name]}")
        print(f"losses {moment} a cycle agree: student {a['student']:.6f} {b['student']:.6f}, fake score {a['fake']:.6f} {b['fake']:.6f}")
        if moment == "before":
            ours.cycle(), theirs.cycle()


def alternate(pairs, first, second):
    a, b = [], []
    for i in range(pairs):  # A B B A A B ...: neither side always follows the other
        for side, times in ((first, a), (second, b)) if i % 2 == 0 else ((second, b), (first, a)):
            times.append(side())
    return a, b


def cycles(args, folder):
    theirs, ours = TorchSide(folder), OurSide(args.binary, folder)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {ours.info['parameters'] / 1e6:.2f} M parameters, batch {args.batch}, "
          f"{ours.info['forward_flops'] / 1e9:.1f} GFLOP forward", flush=True)
    check(ours, theirs)
    for _ in range(2):
        ours.cycle(), theirs.cycle()
    o, t = alternate(args.pairs, ours.cycle, theirs.cycle)
    m = statistics.median
    ratios = sorted(b[0] / a[0] for a, b in zip(o, t))
    row = dict(name="DMD2 cycle", pairs=args.pairs, ours=m(a[0] for a in o), theirs=m(b[0] for b in t), speedup_wall=m(ratios),
               speedup_cpu=m(b[1] / a[1] for a, b in zip(o, t)), lowest=ratios[0], highest=ratios[-1])
    print(f"DMD2 cycle                   ours {row['ours']:.4f} s  PyTorch {row['theirs']:.4f} s  speed-up {row['speedup_wall']:.3f} "
          f"[{row['lowest']:.2f}, {row['highest']:.2f}] (CPU time {row['speedup_cpu']:.3f})  {args.pairs} pairs", flush=True)
    return [row]


def trainer(args):
    a = OurSide(args.binary).ask(f"trainer {args.config} {args.pairs}")
    row = dict(name="trainer cycle", seconds=statistics.median(a["wall"]), cpu=statistics.median(a["cpu"]))
    print(f"cycle of the trainer itself  {row['seconds']:.4f} s: data, text encoder, draws keyed by sample, monitors included", flush=True)
    return [row]


def gan(args):
    a = OurSide(args.binary).ask("gan")
    whole = a["one_graph"]
    row = dict(name="GAN backward", **a)
    shares = ", ".join(f"{text} {a[key] / MIB:.1f} ({a[key] / whole:.2f})" for key, text in (
        ("beside", "beside the student's graph"), ("beside_in_parts", "the same in parts of 8"), ("again", "student made again"),
        ("again_in_parts", "the same in parts of 8")))
    print(f"GAN backward, peak           one graph {whole / MIB:.1f} MiB; two stages: {shares}; gradients differ by {a['gap']:.1e}", flush=True)
    return [row]


def latency(args):
    rows = []
    for batch, calls in ((1, args.pairs), (32, max(3, args.pairs // 4))):
        a = OurSide(args.binary).ask(f"latency {args.model} {batch} {calls}")
        ratios = sorted(t / s for s, t in zip(a["two_steps"], a["teacher"]))
        row = dict(name=f"latency, batch {batch}", two_steps=statistics.median(a["two_steps"]), teacher=statistics.median(a["teacher"]),
                   speedup=statistics.median(ratios), lowest=ratios[0], highest=ratios[-1], calls=calls)
        print(f"latency, batch {batch:<13} 2 steps {1e3 * row['two_steps']:.1f} ms, teacher {1e3 * row['teacher']:.1f} ms: {row['speedup']:.1f} times "
              f"[{ratios[0]:.1f}, {ratios[-1]:.1f}], {calls} pairs", flush=True)
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--config", default="configs/distill/dmd2.yaml", help="of the trainer's own cycle; its teacher must be there")
    parser.add_argument("--model", default="runs/sdxl/text16", help="run or model folder whose latency is measured")
    parser.add_argument("--only", nargs="*", default=["cycle", "trainer", "gan", "latency"])
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        if "cycle" in args.only:
            make_case(folder, args.batch)
            rows += cycles(args, folder)
    for name, run in (("trainer", trainer), ("gan", gan), ("latency", latency)):
        if name in args.only:
            rows += run(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
