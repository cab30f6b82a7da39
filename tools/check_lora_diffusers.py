#!/usr/bin/env python3
"""Checks LoRAs and schedulers exported by fewstep against diffusers and PEFT, offline:

    python tools/check_lora_diffusers.py build/fewstep [--run RUN ...]      (needs torch, diffusers, transformers, peft, safetensors)

A small pipeline of SDXL's topology (three levels, two layers a block) gets a random adapter of rank 4 and alpha 6 on every linear
layer and convolution, saved as our trainers do. Exported by fewstep as lora-peft and lora-kohya (diffusers and sgm names), float32
and bfloat16:
  1. diffusers' load_lora_weights takes every layer, and each layer's change of weight is alpha / r B A;
  2. its images in 4 steps are fewstep's from the same noise: a deterministic student (DDIM), a stochastic one (LCM, whose fresh
     noise is ours here), both with the exported scheduler;
  3. the exported schedulers (LCM, DDIM, flow with shift 3 at two sizes) give the trained timesteps and sigmas in diffusers;
  4. sshs_model_hash and sshs_legacy_hash are those of sd-scripts' algorithm on the same tensors;
  5. a tiny Qwen-Image transformer: every linear layer in both forms.
--run: a distilled run; its exported scheduler is held against its distillation.json, and its LoRA loads into the base's UNet.
Prints one line a check with the number measured; exit code 1 when one is beyond its limit.
"""
import argparse
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import diffusers
import numpy as np
import torch
import transformers
from diffusers.schedulers import scheduling_lcm
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests/golden/sdxl_pipeline"
spec = importlib.util.spec_from_file_location("golden", ROOT / "tools/golden/sdxl_pipeline.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)
RANK, ALPHA, SEED, IDS = 4, 6.0, 3, [0, 1]
PROMPT, SIDE = "a dark long dress", 16
failures = 0


def report(what, value, limit):
    global failures
    ok = value <= limit
    failures += not ok
    print(f"{'ok  ' if ok else 'FAIL'} {what}: {value:.3g} (limit {limit:g})", flush=True)


def fewstep(*arguments, fails=False):
    done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True)
    if (done.returncode != 0) != fails:
        sys.exit(f"fewstep {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
    return done.stderr


def layers_of(module):
    return {name: m for name, m in module.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}


def random_adapter(module, scale):
    """{layer: (A, B)} as PEFT shapes them."""
    g, out = torch.Generator().manual_seed(1), {}
    for name, m in layers_of(module).items():
        a = torch.randn(RANK, *m.weight.shape[1:], generator=g) / m.weight[0].numel() ** 0.5
        b = scale * torch.randn(m.weight.shape[0], RANK, *([1] * (m.weight.ndim - 2)), generator=g)
        out[name] = (a, b)
    return out


def change(a, b):
    delta = ALPHA / RANK * (b.flatten(1).double() @ a.flatten(1).double())
    return delta.reshape(b.shape[0], *a.shape[1:]).float()


def write_adapter(folder, adapter, base):
    """As Tuning::save_adapter does."""
    folder.mkdir(parents=True)
    tensors = {}
    for name, (a, b) in adapter.items():
        tensors[f"base_model.model.{name}.lora_A.weight"], tensors[f"base_model.model.{name}.lora_B.weight"] = a, b
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": str(base), "r": RANK, "lora_alpha": ALPHA, "bias": "none",
              "target_modules": sorted(adapter)}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def make_base(folder):
    """The golden pipeline with a UNet of SDXL's three levels and two layers a block."""
    shutil.copytree(GOLDEN, folder)
    generator = torch.Generator().manual_seed(0)
    unet = golden.randomise(diffusers.UNet2DConditionModel(
        sample_size=SIDE // 2, block_out_channels=(8, 8, 16), layers_per_block=2, norm_num_groups=4, down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",), transformer_layers_per_block=(1, 2, 3), attention_head_dim=(1, 1, 2), cross_attention_dim=20,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=56), generator)
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet")
    return unet


def beta_levels(timesteps):
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return [float(np.sqrt(1 - np.cumprod(1 - betas)[t])) for t in timesteps]


RUNGS = [999, 749, 499, 249]
BETAS = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="epsilon", clip_sample=False)
STUDENTS = {
    "LCM": ("lcm", dict(_class_name="LCMScheduler", original_inference_steps=4, timestep_scaling=1e6, set_alpha_to_one=True, **BETAS)),
    "DDIM": ("ddim", dict(_class_name="DDIMScheduler", timestep_spacing="trailing", set_alpha_to_one=True, **BETAS)),
}


def make_student(folder, base, unet, adapter, kind):
    sampler, scheduler = STUDENTS[kind]
    shutil.copytree(base, folder)
    state = {k: v.clone() for k, v in unet.state_dict().items()}
    for name, (a, b) in adapter.items():
        state[name + ".weight"] += change(a, b)
    save_file(state, folder / "unet/diffusion_pytorch_model.safetensors", {"format": "pt"})
    write_adapter(folder / "adapter", adapter, base)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    account = {"method": "dmd2", "steps": 4, "timesteps": RUNGS, "sigmas": beta_levels(RUNGS), "sampler": sampler, "cfg_scale": 1, "teacher": str(base)}
    (folder / "distillation.json").write_text(json.dumps(account))


def deltas_of(module, adapter_name="default_0"):
    return {name: m.get_delta_weight(adapter_name) for name, m in module.named_modules() if hasattr(m, "get_delta_weight") and adapter_name in getattr(m, "scaling", {})}


def worst_delta(module, adapter):
    got = deltas_of(module)
    if set(got) != set(adapter):
        print("     missing", sorted(set(adapter) - set(got))[:5], "unexpected", sorted(set(got) - set(adapter))[:5])
        return float("inf")
    return max(float((got[name].detach() - change(a, b)).abs().max() / change(a, b).abs().max()) for name, (a, b) in adapter.items())


def our_noise(step):
    return golden.normal_by_id(IDS, (4, SIDE // 2, SIDE // 2), SEED, golden.SAMPLING, step)


def theirs(pipe):
    """Latents of the loaded pipeline in four steps; fresh noise is ours: 1, 2, ... after the start's."""
    counter = iter(range(1, 100))
    original, scheduling_lcm.randn_tensor = scheduling_lcm.randn_tensor, lambda *_, **__: our_noise(next(counter))
    out = pipe([PROMPT] * len(IDS), latents=our_noise(0), num_inference_steps=4, guidance_scale=1.0, output_type="latent", height=SIDE, width=SIDE).images
    scheduling_lcm.randn_tensor = original
    return out, pipe.vae.decode(out / pipe.vae.config.scaling_factor).sample


def ours(work, model, *more):
    shutil.rmtree(work / "samples", ignore_errors=True)
    fewstep("sample", model, "--prompt", PROMPT, "--num", len(IDS), "--seed", SEED, "--steps", 4, "--out", work / "samples", "--save-latents", work / "latents.safetensors", *more)
    images = [np.asarray(Image.open(work / f"samples/{i:06}.png").convert("RGB")) for i in range(len(IDS))]
    return load_file(work / "latents.safetensors")["latents"], np.stack(images).transpose(0, 3, 1, 2)


def load_pipeline(base):
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(base, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compare_images(what, pipe, latents, pixels):
    z, image = theirs(pipe)
    report(f"{what}: latents, largest difference / largest value", float((z - latents).abs().max() / z.abs().max()), 1e-4)
    mine = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    report(f"{what}: images in [-1, 1], largest difference", float((image - mine).abs().max()), 1e-4)
    bytes_ = ((image.clamp(-1, 1) + 1) * 127.5).round().numpy().astype(int)
    report(f"{what}: PNG, largest difference in levels", int(np.abs(bytes_ - pixels.astype(int)).max()), 1)


def check_scheduler(what, folder, timesteps, trained, **set_timesteps):
    config = json.loads((folder / "scheduler_config.json").read_text())
    scheduler = getattr(diffusers, config["_class_name"]).from_pretrained(folder)
    scheduler.set_timesteps(len(timesteps) if "sigmas" not in set_timesteps else None, **set_timesteps)
    got = scheduler.timesteps.double().numpy()
    if hasattr(scheduler, "alphas_cumprod"):
        levels = np.sqrt(1 - scheduler.alphas_cumprod.double().numpy()[got.round().astype(int)])
    else:
        levels = scheduler.sigmas.double().numpy()[:-1]
    if len(got) != len(timesteps):
        return report(f"{what}: {config['_class_name']}: number of timesteps", abs(len(got) - len(timesteps)), 0)
    report(f"{what}: {config['_class_name']}: timesteps, largest difference", float(np.abs(got - timesteps).max()), 1e-3)
    report(f"{what}: {config['_class_name']}: sigmas, largest difference", float(np.abs(levels - trained).max()), 1e-5)


def check_sdxl(work):
    base = work / "base"
    unet = make_base(base)
    adapter = random_adapter(unet, 0.15)
    print(f"UNet of SDXL's topology: {len(adapter)} layers, rank {RANK}, alpha {ALPHA}")
    for kind in STUDENTS:
        make_student(work / kind, base, unet, adapter, kind)
        for form, more in {"peft": ["lora-peft"], "kohya": ["lora-kohya"], "kohya-sgm": ["lora-kohya", "--kohya-names", "sgm"]}.items():
            out = work / f"{kind}-{form}"
            fewstep("export", work / kind, "--out", out, "--format", *more)
            pipe = load_pipeline(base)
            pipe.load_lora_weights(out, weight_name="pytorch_lora_weights.safetensors")
            report(f"{kind} {form}: change of every layer's weight, relative", worst_delta(pipe.unet, adapter), 1e-6)
            pipe.scheduler = getattr(diffusers, STUDENTS[kind][1]["_class_name"]).from_pretrained(out, subfolder="scheduler")
            compare_images(f"{kind} {form}", pipe, *ours(work, base, f"lora={out}"))
        check_scheduler(kind, work / f"{kind}-peft/scheduler", RUNGS, beta_levels(RUNGS))
        fewstep("export", work / kind, "--out", work / f"{kind}-merged", "--format", "diffusers")
        compare_images(f"{kind} merged folder", load_pipeline(work / f"{kind}-merged"), *ours(work, work / kind))
    latents, _ = ours(work, base, f"lora={work / 'DDIM-peft'}")
    plain, _ = ours(work, base, "sampler=ddim")
    print(f"     (the adapter moves the latents by {float((latents - plain).abs().max() / plain.abs().max()):.2g} of their largest value)")
    for form in ("lora-peft", "lora-kohya"):
        out = work / f"bf16-{form}"
        fewstep("export", work / "DDIM", "--out", out, "--format", form, "--dtype", "bfloat16")
        pipe = load_pipeline(base)
        pipe.load_lora_weights(out, weight_name="pytorch_lora_weights.safetensors")
        report(f"bfloat16 {form}: change of every layer's weight, relative", worst_delta(pipe.unet, adapter), 0.02)


def check_hashes(work):
    """sd-scripts: precalculate_safetensors_hashes in library/train_util.py, from memory of the algorithm."""
    generator = torch.Generator().manual_seed(4)
    unet = diffusers.UNet2DConditionModel.from_pretrained(work / "base/unet")
    wide = {name: (torch.randn(512, *a.shape[1:], generator=generator), torch.randn(b.shape[0], 512, *b.shape[2:], generator=generator)) for name, (a, b) in random_adapter(unet, 1).items()}
    shutil.copytree(work / "LCM", work / "wide")
    shutil.rmtree(work / "wide/adapter")
    write_adapter(work / "wide/adapter", wide, "base")
    fewstep("export", work / "wide", "--format", "lora-kohya", "--out", work / "wide.safetensors")
    with safe_open(work / "wide.safetensors", "pt") as f:
        metadata = f.metadata()
    data = save(load_file(work / "wide.safetensors"), {k: v for k, v in metadata.items() if k.startswith("ss_")})
    length = int.from_bytes(data[:8], "little")
    stream = io.BytesIO(data)
    stream.seek(0x100000)
    window = stream.read(0x10000)
    report(f"sshs_model_hash differs ({len(data)} bytes)", int(metadata["sshs_model_hash"] != hashlib.sha256(data[8 + length:]).hexdigest()), 0)
    report(f"sshs_legacy_hash differs (window of {len(window)} bytes)", int(metadata["sshs_legacy_hash"] != hashlib.sha256(window).hexdigest()[:8]), 0)


def check_flow(work):
    """Even rungs through shift 3, as StudentSchedule writes them; the pipeline passes sigmas 1 .. 1/n and mu by the image's size."""
    folder = work / "flow"
    shutil.copytree(work / "DDIM", folder)
    sigmas = [3 * u / (1 + 2 * u) for u in (1, 0.75, 0.5, 0.25)]
    scheduler = dict(_class_name="FlowMatchEulerDiscreteScheduler", num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=True, base_shift=float(np.log(3)),
                     max_shift=float(np.log(3)), base_image_seq_len=256, max_image_seq_len=4096, shift_terminal=None, time_shift_type="exponential")
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    account = {"method": "pcm", "steps": 4, "timesteps": [1000 * s for s in sigmas], "sigmas": sigmas, "sampler": "flow_euler", "cfg_scale": 1, "teacher": ""}
    (folder / "distillation.json").write_text(json.dumps(account))
    fewstep("export", folder, "--format", "lora-peft", "--out", work / "flow-lora")
    for tokens in (256, 4096):
        mu = scheduler["base_shift"] + (tokens - 256) / (4096 - 256) * (scheduler["max_shift"] - scheduler["base_shift"])
        check_scheduler(f"flow, {tokens} tokens", work / "flow-lora/scheduler", [1000 * s for s in sigmas], sigmas, sigmas=np.linspace(1, 0.25, 4), mu=mu)
    # Explicit rungs 1000 and 700: a stretch to the last one.
    scheduler.update(base_shift=0.0, max_shift=0.0, shift_terminal=0.7)
    account.update(steps=2, timesteps=[1000, 700], sigmas=[1, 0.7, 0])
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "distillation.json").write_text(json.dumps(account))
    fewstep("export", folder, "--format", "lora-peft", "--out", work / "flow-two")
    check_scheduler("flow, two rungs", work / "flow-two/scheduler", [1000, 700], [1, 0.7], sigmas=np.linspace(1, 0.5, 2), mu=0.0)
    scheduler["max_shift"] = 1.15
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    said = fewstep("export", folder, "--format", "lora-peft", "--out", work / "flow-wrong", fails=True)
    print("ok   a scheduler that does not fit is refused:", said.strip().splitlines()[-1][:160])


def check_qwen(work):
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 6, 6))
    folder = work / "qwen"
    transformer.save_pretrained(folder / "transformer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline", "transformer": ["diffusers", "QwenImageTransformer2DModel"]}))
    adapter = random_adapter(transformer, 0.3)
    write_adapter(folder / "adapter", adapter, "Qwen/Qwen-Image")
    print(f"Qwen-Image transformer: {len(adapter)} layers")
    for form in ("lora-peft", "lora-kohya"):
        for dtype, limit in (("float32", 1e-6), ("bfloat16", 0.02)):
            file = work / f"qwen-{form}-{dtype}.safetensors"
            fewstep("export", folder, "--format", form, "--out", file, "--dtype", dtype)
            fresh = diffusers.QwenImageTransformer2DModel.from_pretrained(folder / "transformer")
            state, metadata = diffusers.QwenImagePipeline.lora_state_dict(str(file), return_lora_metadata=True)
            diffusers.QwenImagePipeline.load_lora_into_transformer(state, fresh, adapter_name="default_0", metadata=metadata)
            report(f"Qwen-Image {form} {dtype}: change of every layer's weight, relative", worst_delta(fresh, adapter), limit)


def check_run(work, run):
    fewstep("export", run, "--format", "lora-peft", "--out", work / "run")
    fewstep("export", run, "--format", "diffusers", "--out", work / "run-merged")
    account = json.loads((work / "run-merged/distillation.json").read_text())
    steps, sigmas = account["timesteps"], account["sigmas"][:len(account["timesteps"])]
    config = json.loads((work / "run/scheduler/scheduler_config.json").read_text())
    flow = dict(sigmas=np.linspace(1, 1 / len(steps), len(steps)), mu=config.get("base_shift")) if config["_class_name"].startswith("FlowMatch") else {}
    check_scheduler(f"{run}", work / "run/scheduler", steps, sigmas, **flow)
    base = pathlib.Path(account["teacher"])
    unets = sorted([base / "unet"] if (base / "unet").exists() else base.glob("checkpoints/step-*/model/unet"))
    unet = diffusers.UNet2DConditionModel.from_pretrained(unets[-1])
    with safe_open(work / "run/pytorch_lora_weights.safetensors", "pt") as f:
        metadata = json.loads(f.metadata()["lora_adapter_metadata"])
    diffusers.StableDiffusionXLPipeline.load_lora_into_unet(load_file(work / "run/pytorch_lora_weights.safetensors"), None, unet, adapter_name="default_0", metadata=metadata)
    merged = load_file(work / "run-merged/unet/diffusion_pytorch_model.safetensors")
    worst = max(float((m.base_layer.weight + m.get_delta_weight("default_0") - merged[name + ".weight"]).abs().max()) for name, m in unet.named_modules() if hasattr(m, "get_delta_weight"))
    report(f"{run}: base + LoRA in diffusers against the run's merged weights", worst, 1e-6)
    shutil.rmtree(work / "run"), shutil.rmtree(work / "run-merged")


def main():
    global BINARY
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--run", action="append", default=[])
    arguments = parser.parse_args()
    BINARY = arguments.binary
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        os.environ["FEWSTEP_CACHE"] = str(work / "cache")
        check_sdxl(work)
        check_hashes(work)
        check_flow(work)
        check_qwen(work)
        for run in arguments.run:
            check_run(work, run)
    print("all within limits" if failures == 0 else f"{failures} beyond their limits")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
