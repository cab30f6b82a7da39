#!/usr/bin/env python3
"""Makes two golden folders of tiny SDXL pipelines, base and refiner, with diffusers and transformers.

    python tools/golden/sdxl_pipeline.py OUT_BASE OUT_REFINER [--seed S]      (needs torch, diffusers, transformers, safetensors, PIL)

Each is a whole diffusers folder with weights in half precision. io.safetensors and case.json are for `fewstep model verify`: token ids -> embeddings -> Euler with
guidance -> image. end_to_end.safetensors of the base holds what diffusers' StableDiffusionXLPipeline and ...Img2ImgPipeline make of
the prompts in end_to_end.json from *our* noise (Philox counters and Box-Muller, written again below): `text_to_image`, `micro`
(other sizes, crop, negative prompt), `base_and_refiner` (handed over at 0.8), `image_to_image` (init.png, strength 0.5).
tests/golden/sdxl_pipeline and sdxl_refiner are the outputs of the defaults.
"""
import argparse
import json
import math
import pathlib
import shutil

import numpy as np
import torch
from diffusers import (AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline,
                       UNet2DConditionModel)
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img as img2img
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TOKENIZER = pathlib.Path(__file__).parents[2] / "tests/golden/clip_tokenizer"
LENGTH, SIDE, STEPS, GUIDANCE, SEED = 12, 16, 10, 5.0, 3
PROMPTS, IDS = ["a dark long dress", "two small birds"], [0, 7]
SAMPLING, POSTERIOR = 7, 11  # of our random streams


def philox(counter, key):
    c, k = [np.asarray(x, np.uint64) for x in counter], [int(x) for x in key]
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]), p1 & mask, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]), p0 & mask]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def philox_u64(seed, a, b):
    low = 0xFFFFFFFF
    r = philox([a & low, a >> 32, b & low, b >> 32], [seed & low, seed >> 32])
    return (int(r[1]) << 32) | int(r[0])


def normal_by_id(ids, shape, seed, stream, step=0):
    rows, n = [], math.prod(shape)
    for i in ids:
        key = philox_u64(philox_u64(seed, stream, step), i, 1)
        index = np.arange((n + 1) // 2, dtype=np.uint64)
        b = philox([index, np.zeros_like(index), np.zeros_like(index), np.zeros_like(index)], [key & 0xFFFFFFFF, key >> 32])
        unit = [((high << np.uint64(32) | low) >> np.uint64(11)).astype(np.float64) * 2.0**-53 for low, high in ((b[0], b[1]), (b[2], b[3]))]
        radius, angle = np.sqrt(-2 * np.log(1 - unit[0])), 2 * np.pi * unit[1]
        rows.append(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)[:n].astype(np.float32).reshape(shape))
    return torch.from_numpy(np.stack(rows))


def randomise(module, generator):
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim == 1:
            p.data = (1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.2 * noise
        else:
            p.data = noise / p[0].numel() ** 0.5
        p.data = p.data.half().float()  # the files are written in half precision
    return module.eval().requires_grad_(False)


def text_encoder(kind, width, activation, vocabulary, generator):
    return randomise(kind(CLIPTextConfig(vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, projection_dim=8,
                                         num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=LENGTH,
                                         hidden_act=activation, eos_token_id=2)), generator)


def unet(context, numbers, generator):
    return randomise(UNet2DConditionModel(
        sample_size=SIDE // 2, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), attention_head_dim=(1, 2), cross_attention_dim=context, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=8 + 8 * numbers), generator)


def tokenizer(pad):
    # The files with their names: newer versions of transformers write others.
    return CLIPTokenizer(str(TOKENIZER / "vocab.json"), str(TOKENIZER / "merges.txt"), pad_token=pad, model_max_length=LENGTH)


def write_tokenizer(folder, pad):
    folder.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    config = json.loads((TOKENIZER / "tokenizer_config.json").read_text())
    config.update(model_max_length=LENGTH, pad_token=pad)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_pipeline(pipe, folder, pads):
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler"):
        part = getattr(pipe, name)
        if part is not None:
            half = isinstance(part, torch.nn.Module)
            (part.half() if half else part).save_pretrained(folder / name)
            if half:
                part.float()
    for name, pad in pads.items():
        write_tokenizer(folder / name, pad)
    index = {"_class_name": type(pipe).__name__}
    for name in ("unet", "vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        part = getattr(pipe, name)
        library = "transformers" if name.startswith("t") else "diffusers"
        index[name] = [None, None] if part is None else [library, "CLIPTokenizer" if name.startswith("tok") else type(part).__name__]
    index["force_zeros_for_empty_prompt"] = pipe.config.force_zeros_for_empty_prompt
    if "requires_aesthetics_score" in pipe.config:
        index["requires_aesthetics_score"] = pipe.config.requires_aesthetics_score
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_verify_case(pipe, folder, time_ids, generator):
    """Ids, embeddings and every step, as a loop written by hand; conditional row first."""
    parts = [(e, t) for e, t in ((pipe.text_encoder, pipe.tokenizer), (pipe.text_encoder_2, pipe.tokenizer_2)) if e is not None]
    tensors, states = {}, []
    names = ["input_ids_cond_then_uncond", "input_ids_2_cond_then_uncond"][:len(parts)]
    for name, (encoder, words) in zip(names, parts):
        ids = words([PROMPTS[0], "no"], padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
        tensors["input." + name] = ids
        out = encoder(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2])
    context, pooled, scheduler = torch.cat(states, -1), out.text_embeds, pipe.scheduler
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(1, 4, SIDE // 2, SIDE // 2, generator=generator)
    x, trace = noise * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        inputs = scheduler.scale_model_input(torch.cat([x, x]), t)
        predicted = pipe.unet(inputs, t, context, added_cond_kwargs=dict(text_embeds=pooled, time_ids=time_ids)).sample
        cond, uncond = predicted.chunk(2)
        x = scheduler.step(uncond + GUIDANCE * (cond - uncond), t, x).prev_sample
        trace.append(x)
    image = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    tensors.update({"input.initial_noise": noise, "input.time_ids": time_ids, "expected.prompt_embeds": context,
                    "expected.pooled": pooled, "expected.latents_after_each_step": torch.cat(trace), "expected.image": image})
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "io.safetensors")
    case = {"class": type(pipe).__name__, "args": {"guidance_scale": GUIDANCE, "num_inference_steps": STEPS}}
    (folder / "case.json").write_text(json.dumps(case, indent=2) + "\n")


def init_picture():
    y, x = np.mgrid[0:24, 0:20]  # neither the images' size nor their shape
    rgb = np.stack([10 * y, 12 * x, 128 + 60 * np.sin(x / 3) * np.cos(y / 4)], -1)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))


def image_to_image(pipe, picture):
    scale = max(SIDE / picture.height, SIDE / picture.width)
    size = [max(SIDE, math.floor(side * scale + 0.5)) for side in picture.size]
    scaled = picture.resize(size, Image.LANCZOS)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    pixels = torch.from_numpy(np.array(scaled.crop((left, top, left + SIDE, top + SIDE)))).permute(2, 0, 1)[None] / 127.5 - 1
    shape = (4, SIDE // 2, SIDE // 2)
    posterior = pipe.vae.encode(pixels.expand(len(IDS), -1, -1, -1)).latent_dist
    latents = (posterior.mean + posterior.std * normal_by_id(IDS, shape, SEED, POSTERIOR)) * pipe.vae.config.scaling_factor
    second = StableDiffusionXLImg2ImgPipeline(pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.tokenizer, pipe.tokenizer_2, pipe.unet,
                                              EulerDiscreteScheduler.from_config(pipe.scheduler.config))
    second.set_progress_bar_config(disable=True)
    original, img2img.randn_tensor = img2img.randn_tensor, lambda *_, **__: normal_by_id(IDS, shape, SEED, SAMPLING)
    out = second(PROMPTS, image=latents, strength=0.5, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent",
                 original_size=(SIDE, SIDE), target_size=(SIDE, SIDE)).images
    img2img.randn_tensor = original
    return out


def write_end_to_end(base, refiner, folder):
    noise = normal_by_id(IDS, (4, SIDE // 2, SIDE // 2), SEED, SAMPLING)
    common = dict(num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent")
    plain = dict(height=SIDE, width=SIDE, original_size=(SIDE, SIDE), target_size=(SIDE, SIDE))
    base.set_progress_bar_config(disable=True), refiner.set_progress_bar_config(disable=True)
    text = base(PROMPTS, latents=noise.clone(), **plain, **common).images
    wide = normal_by_id(IDS, (4, SIDE // 2, SIDE), SEED, SAMPLING)
    micro = base(PROMPTS, negative_prompt=["small birds"] * 2, latents=wide, height=SIDE, width=2 * SIDE, original_size=(40, 50),
                 crops_coords_top_left=(3, 5), target_size=(32, 64), negative_original_size=(40, 50),
                 negative_crops_coords_top_left=(3, 5), negative_target_size=(32, 64), guidance_rescale=0.7, **common).images
    handed = base(PROMPTS, latents=noise.clone(), denoising_end=0.8, **plain, **common).images
    both = refiner(PROMPTS, image=handed, denoising_start=0.8, original_size=(SIDE, SIDE), target_size=(SIDE, SIDE), **common).images
    picture = init_picture()
    picture.save(folder / "init.png")
    tensors = {"noise": noise, "text_to_image": text, "micro": micro, "handed_over": handed, "base_and_refiner": both,
               "image_to_image": image_to_image(base, picture),
               "pixels": base.vae.decode(text / base.vae.config.scaling_factor).sample}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "end_to_end.safetensors")
    facts = {"prompts": PROMPTS, "ids": IDS, "seed": SEED, "steps": STEPS, "guidance": GUIDANCE}
    (folder / "end_to_end.json").write_text(json.dumps(facts, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=pathlib.Path)
    parser.add_argument("refiner", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    g = torch.Generator().manual_seed(args.seed)
    vocabulary = len(json.loads((TOKENIZER / "vocab.json").read_text()))
    first = text_encoder(CLIPTextModel, 8, "quick_gelu", vocabulary, g)
    second = text_encoder(CLIPTextModelWithProjection, 12, "gelu", vocabulary, g)
    vae = randomise(AutoencoderKL(block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, latent_channels=4,
                                  down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                                  scaling_factor=0.13025, sample_size=SIDE), g)
    end, bang = "<|endoftext|>", "!"
    scheduler = lambda: EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                                               timestep_spacing="leading", prediction_type="epsilon")
    base = StableDiffusionXLPipeline(vae, first, second, tokenizer(end), tokenizer(bang), unet(20, 6, g), scheduler(),
                                     add_watermarker=False)
    refiner = StableDiffusionXLImg2ImgPipeline(vae, None, second, None, tokenizer(bang), unet(12, 5, g), scheduler(),
                                               requires_aesthetics_score=True, force_zeros_for_empty_prompt=False, add_watermarker=False)
    write_pipeline(base, args.base, {"tokenizer": end, "tokenizer_2": bang})
    write_pipeline(refiner, args.refiner, {"tokenizer_2": bang})
    write_verify_case(base, args.base, torch.tensor([[40.0, 30, 3, 5, 16, 16], [16, 16, 0, 0, 16, 16]]), g)
    write_verify_case(refiner, args.refiner, torch.tensor([[40.0, 30, 3, 5, 6], [16, 16, 0, 0, 2.5]]), g)
    write_end_to_end(base, refiner, args.base)


if __name__ == "__main__":
    main()
