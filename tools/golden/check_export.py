"""Checks `fewstep export` against diffusers and transformers, offline: python tools/golden/check_export.py build/fewstep

A small SDXL pipeline, its refiner and a Stable Diffusion 1.x pipeline with random weights are saved by diffusers and exported to
one file by fewstep. Then
  1. diffusers' own conversion of that file (from_single_file of UNet and VAE, convert_ldm_clip_checkpoint and
     convert_open_clip_checkpoint of the text encoders) must give the tensors back, bit for bit;
  2. fewstep's export of the file to a folder must load in diffusers and transformers, again with equal tensors; also in float16,
     in shards and under the variant "fp16".
Needs torch, diffusers, transformers and safetensors.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils as single_file
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


VOCABULARY = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/clip_tokenizer"


def unet_of(kind):
    common = dict(norm_num_groups=32, layers_per_block=2, sample_size=128)
    if kind == "sd-1":
        return UNet2DConditionModel(block_out_channels=(64, 64, 128), down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                                    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=8,
                                    cross_attention_dim=768, **common)
    xl = dict(use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256, **common)
    if kind == "sdxl-refiner":
        return UNet2DConditionModel(block_out_channels=(64, 64, 128, 128), down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
                                    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",), attention_head_dim=(1, 1, 2, 2),
                                    transformer_layers_per_block=2, cross_attention_dim=1280, projection_class_embeddings_input_dim=2560, **xl)
    return UNet2DConditionModel(block_out_channels=(64, 64, 128), down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
                                up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",), attention_head_dim=(1, 1, 2),
                                transformer_layers_per_block=(1, 2, 3), cross_attention_dim=2048, projection_class_embeddings_input_dim=2816, **xl)


def write_pipeline(folder, kind):
    torch.manual_seed(0)
    betas = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    parts = {"unet": unet_of(kind),
             "vae": AutoencoderKL(block_out_channels=(32, 32, 64, 64), layers_per_block=2, latent_channels=4, scaling_factor=0.13025 if kind != "sd-1" else 0.18215, **blocks)}
    first = CLIPTextConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=1, vocab_size=722, projection_dim=64, eos_token_id=2)
    second = CLIPTextConfig(hidden_size=128, intermediate_size=512, num_hidden_layers=11, num_attention_heads=2, vocab_size=722, projection_dim=128,
                            hidden_act="gelu", eos_token_id=2)
    if kind != "sdxl-refiner":
        parts["text_encoder"] = CLIPTextModel(first)
    if kind != "sd-1":
        parts["text_encoder_2"] = CLIPTextModelWithProjection(second)
    parts["scheduler"] = DDIMScheduler(steps_offset=1, clip_sample=False, **betas) if kind == "sd-1" else EulerDiscreteScheduler(**betas)
    index = {"_class_name": {"sd-1": "StableDiffusionPipeline", "sdxl-base": "StableDiffusionXLPipeline"}.get(kind, "StableDiffusionXLImg2ImgPipeline")}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = ["transformers" if name.startswith("text") else "diffusers", type(part).__name__]
        if name.startswith("text"):
            tokenizer = name.replace("text_encoder", "tokenizer")
            shutil.copytree(VOCABULARY, folder / tokenizer, ignore=shutil.ignore_patterns("expected.json"))
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
    absent = {"sdxl-refiner": ["text_encoder", "tokenizer"], "sd-1": ["safety_checker", "feature_extractor"]}.get(kind, [])
    index |= {name: [None, None] for name in absent} | ({"requires_safety_checker": False} if kind == "sd-1" else {})
    (folder / "model_index.json").write_text(json.dumps(index))
    return {name: part.state_dict() for name, part in parts.items() if name != "scheduler"}


def equal(name, expected, actual):
    """Same names, dtypes, shapes and values; transformers 5 leaves "text_model." out of CLIPTextModel's names."""
    plain = lambda state: {k.removeprefix("text_model."): v for k, v in state.items() if not k.endswith("position_ids")}
    expected, actual = plain(expected), plain(actual)
    missing, extra = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
    different = [k for k in expected.keys() & actual.keys() if expected[k].dtype != actual[k].dtype or expected[k].shape != actual[k].shape
                 or not torch.equal(expected[k], actual[k])]
    ok = not missing and not extra and not different
    print(f"  {name:<58} {len(expected):>5} tensors {'equal' if ok else f'FAIL: missing {missing[:3]}, extra {extra[:3]}, different {different[:3]}'}")
    return ok


def export(fewstep, source, form, out, *more):
    subprocess.run([fewstep, "--log", "warning", "export", source, "--format", form, "--out", out, *more], check=True)


def converted_by_diffusers(file, folder, kind):
    load = lambda cls, name: cls.from_single_file(str(file), config=str(folder), subfolder=name, local_files_only=True).state_dict()
    out = {"unet": load(UNet2DConditionModel, "unet"), "vae": load(AutoencoderKL, "vae")}
    checkpoint = load_file(file)
    if kind != "sdxl-refiner":
        prefix = "cond_stage_model.transformer." if kind == "sd-1" else "conditioner.embedders.0.transformer."
        out["text_encoder"] = single_file.convert_ldm_clip_checkpoint(dict(checkpoint), remove_prefix=prefix)
    if kind != "sd-1":
        prefix = "conditioner.embedders.1.model." if kind == "sdxl-base" else "conditioner.embedders.0.model."
        model = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
        out["text_encoder_2"] = single_file.convert_open_clip_checkpoint(model, dict(checkpoint), prefix=prefix)
    return out


def loaded_by_them(folder, **options):
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    return {name: cls.from_pretrained(folder / name, **options).state_dict() for name, cls in classes.items() if (folder / name).is_dir()}


def pipelines_load(kind, file, back):
    """The whole pipelines by diffusers' own loaders; raises when one does not load."""
    print(f"  pipeline: folder loads as {type(DiffusionPipeline.from_pretrained(back, local_files_only=True)).__name__}")
    if kind == "sdxl-base":
        pipeline = StableDiffusionXLPipeline.from_single_file(str(file), config=str(back), local_files_only=True)
        print(f"  pipeline: file loads as {type(pipeline).__name__}, scheduler {type(pipeline.scheduler).__name__}")


def check(fewstep, kind, scratch):
    print(kind)
    folder, file = scratch / "folder", scratch / "one.safetensors"
    original = write_pipeline(folder, kind)
    export(fewstep, folder, "single-file", file)
    inferred = single_file.infer_diffusers_model_type(load_file(file))
    print(f"  diffusers takes the file for '{inferred}'")
    results = [equal(f"{n}: converted by diffusers", original[n], s) for n, s in converted_by_diffusers(file, folder, kind).items()]
    export(fewstep, file, "diffusers", scratch / "back")
    results += [equal(f"{n}: folder made of the file, loaded by diffusers", original[n], s) for n, s in loaded_by_them(scratch / "back").items()]
    pipelines_load(kind, file, scratch / "back")
    export(fewstep, file, "diffusers", scratch / "half", "--dtype", "float16", "--variant", "fp16", "--max-shard-size", "1MB")
    half = {n: {k: v.half() if v.is_floating_point() else v for k, v in s.items()} for n, s in original.items()}
    for name, state in loaded_by_them(scratch / "half", variant="fp16", torch_dtype=torch.float16).items():
        results.append(equal(f"{name}: float16 shards of variant fp16", half[name], state))
    return all(results)


def main():
    fewstep = str(pathlib.Path(sys.argv[1]).resolve())
    ok = True
    for kind in ("sdxl-base", "sdxl-refiner", "sd-1"):
        with tempfile.TemporaryDirectory() as scratch:
            ok = check(fewstep, kind, pathlib.Path(scratch)) and ok
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
