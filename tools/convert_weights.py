#!/usr/bin/env python3
"""Turns the usual downloads of evaluation networks into folders that fewstep reads: config.json + model.safetensors.

    python tools/convert_weights.py FILE OUT [--kind inception|clip|vgg16|dinov2|lpips|checkpoint] [--image-size S] [--gelu]

Needs Python with torch and safetensors (fewstep itself never unpickles). FILE is a pickled state dict (.pth, also the old non-zip
form), a TorchScript archive (OpenAI's CLIP .pt, NVIDIA's inception-2015-12-05.pt) or a safetensors file:

    pt_inception-2015-12-05-6726825d.pth      FID's InceptionV3 (pytorch-fid, torch-fidelity)
    ViT-B-32.pt, open_clip's .bin or .pt      CLIP; --gelu for LAION's weights, OpenAI's use quick_gelu
    vgg16-397923af.pth                        VGG16 (torchvision)
    dinov2_vitl14_pretrain.pth                DINOv2 (torch.hub)
    lpips/weights/v0.1/vgg.pth                linear layers of LPIPS (PyPI package lpips); OUT: the folder lpips in VGG16's folder
    v1-5-pruned.ckpt, pytorch_model.bin       checkpoint: names and tensors as they are, OUT: a file *.safetensors (fewstep export and
                                              sample read single files of Stable Diffusion 1.x and SDXL, and diffusers' folders)

What is already a folder in Hugging Face's form (openai/clip-vit-base-patch32, facebook/dinov2-large) needs no conversion. The
SHA-256 of FILE is printed and kept in the file's metadata (source_sha256): numbers of published weights are named by it.
"""
import argparse
import hashlib
import json
import pathlib
import re
import sys

import torch
from safetensors.torch import load_file, save_file


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_state(path):
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a TorchScript archive
        state = torch.jit.load(path, map_location="cpu").state_dict()
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and key in state and isinstance(state[key], dict):
            state = state[key]
    return {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, torch.Tensor)}


def kind_of(state):
    if any(k.endswith("Mixed_7c.branch_pool.conv.weight") for k in state):
        return "inception"
    if "visual.conv1.weight" in state or "visual.proj" in state:
        return "clip"
    if "features.28.weight" in state and "classifier.6.weight" in state:
        return "vgg16"
    if "blocks.0.attn.qkv.weight" in state:
        return "dinov2"
    if "lin0.model.1.weight" in state:
        return "lpips"
    if any(k.startswith(("model.diffusion_model.", "first_stage_model.", "down_blocks.", "encoder.down_blocks.", "text_model.")) for k in state):
        return "checkpoint"
    sys.exit(f"convert_weights.py: none of the known networks; the names begin {sorted(state)[:4]}; say --kind")


def write_checkpoint(state, args, source):
    """Only the form changes. Tensors that share memory (tied or sliced ones) are written apart."""
    if args.out.suffix != ".safetensors":
        sys.exit(f"convert_weights.py: {args.out}: a checkpoint becomes one file, *.safetensors")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in sorted(state.items())}, args.out, metadata={"format": "pt", "source": args.file.name, "source_sha256": source})
    print(f"{args.out}: {len(state)} tensors, SHA-256 {sha256(args.out)}")


def inception(state, args):
    state = {k.removeprefix("layers."): v for k, v in state.items()}
    return state, {"architecture": "pytorch_fid InceptionV3", "channel_divisor": 1, "num_classes": state["fc.weight"].shape[0], "bn_eps": 1e-3}


def vgg16(state, args):
    return state, {"architecture": "torchvision VGG16", "channel_divisor": 1, "num_classes": state["classifier.6.weight"].shape[0],
                   "image_size": args.image_size or 224}


def lpips(state, args):
    """1 x 1 convolutions without bias, a weight a channel of VGG16's five stages."""
    state = {f"lin{k}.weight": v.flatten().float() for k in range(5) if (v := state.pop(f"lin{k}.model.1.weight", None)) is not None}
    widths = [v.numel() for v in state.values()]
    if widths != [64, 128, 256, 512, 512]:
        sys.exit(f"convert_weights.py: linear layers of {widths} channels; only LPIPS with VGG16 (64, 128, 256, 512, 512) is supported")
    return state, {"architecture": "LPIPS linear layers", "network": "vgg16"}


def rename(state, rules):
    out = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name, found = re.subn(pattern, replacement, name)
            if found and replacement == "":
                break
        if name:
            out[name] = value
    return out


def split_in_thirds(state, pattern, names):
    """Packed query, key, value -> three tensors; `names` has one {} for the rest of the name."""
    out = {}
    for name, value in state.items():
        match = re.fullmatch(pattern, name)
        if not match:
            out[name] = value
            continue
        for part, target in zip(value.chunk(3, 0), names):
            out[target.format(*match.groups())] = part
    return out


CLIP_BLOCK = [(r"\.ln_1\.", ".layer_norm1."), (r"\.ln_2\.", ".layer_norm2."), (r"\.mlp\.c_fc\.", ".mlp.fc1."), (r"\.mlp\.c_proj\.", ".mlp.fc2."),
              (r"\.attn\.out_proj\.", ".self_attn.out_proj.")]
CLIP_NAMES = [(r"^(input_resolution|context_length|vocab_size|attn_mask)$", ""),
              (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
              (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
              (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
              (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."), (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
              (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
              (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
              (r"^token_embedding\.", "text_model.embeddings.token_embedding."), (r"^ln_final\.", "text_model.final_layer_norm."),
              (r"^transformer\.resblocks\.", "text_model.encoder.layers.")] + CLIP_BLOCK


def clip(state, args):
    state = {k: v.float() for k, v in state.items()}
    state = rename(state, CLIP_NAMES)
    packed = r"(.*\.layers\.\d+)\.attn\.in_proj_(weight|bias)"
    state = split_in_thirds(state, packed, ["{}.self_attn.%s_proj.{}" % p for p in "qkv"])
    state["visual_projection.weight"] = state.pop("visual.proj").t().contiguous()
    state["text_projection.weight"] = state.pop("text_projection").t().contiguous()
    state["logit_scale"] = state["logit_scale"].reshape(())
    state.pop("logit_bias", None)

    def tower(prefix):
        layers = 1 + max(int(m.group(1)) for k in state if (m := re.match(prefix + r"\.encoder\.layers\.(\d+)\.", k)))
        width = state[prefix + ".encoder.layers.0.layer_norm1.weight"].shape[0]
        return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64, "layer_norm_eps": 1e-5,
                "intermediate_size": state[prefix + ".encoder.layers.0.mlp.fc1.weight"].shape[0], "hidden_act": "gelu" if args.gelu else "quick_gelu"}

    patch = state["vision_model.embeddings.patch_embedding.weight"]
    grid = round((state["vision_model.embeddings.position_embedding.weight"].shape[0] - 1) ** 0.5)
    text = tower("text_model") | {"vocab_size": state["text_model.embeddings.token_embedding.weight"].shape[0], "eos_token_id": 2,
                                  "max_position_embeddings": state["text_model.embeddings.position_embedding.weight"].shape[0]}
    vision = tower("vision_model") | {"patch_size": patch.shape[-1], "image_size": grid * patch.shape[-1], "num_channels": patch.shape[1]}
    if args.vision_heads:
        vision["num_attention_heads"] = args.vision_heads
    return state, {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": state["visual_projection.weight"].shape[0],
                   "text_config": text, "vision_config": vision}


DINO_NAMES = [(r"^cls_token$", "embeddings.cls_token"), (r"^mask_token$", "embeddings.mask_token"), (r"^pos_embed$", "embeddings.position_embeddings"),
              (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."), (r"^norm\.", "layernorm."), (r"^blocks\.", "encoder.layer."),
              (r"\.attn\.proj\.", ".attention.output.dense."), (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"), (r"\.mlp\.w12\.", ".mlp.weights_in."),
              (r"\.mlp\.w3\.", ".mlp.weights_out.")]


def dinov2(state, args):
    state = rename({k: v.float() for k, v in state.items()}, DINO_NAMES)
    state = split_in_thirds(state, r"(encoder\.layer\.\d+)\.attn\.qkv\.(weight|bias)", ["{}.attention.attention.%s.{}" % p for p in ("query", "key", "value")])
    patch = state["embeddings.patch_embeddings.projection.weight"]
    grid = round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    layers = 1 + max(int(m.group(1)) for k in state if (m := re.match(r"encoder\.layer\.(\d+)\.", k)))
    width = patch.shape[0]
    return state, {"architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": width, "num_hidden_layers": layers,
                   "num_attention_heads": width // 64, "mlp_ratio": 4, "patch_size": patch.shape[-1], "image_size": grid * patch.shape[-1],
                   "num_channels": patch.shape[1], "layer_norm_eps": 1e-6, "use_swiglu_ffn": "encoder.layer.0.mlp.weights_in.weight" in state, "hidden_act": "gelu"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--kind", choices=["inception", "clip", "vgg16", "dinov2", "lpips", "checkpoint"], help="default: told from the names")
    parser.add_argument("--image-size", type=int, help="vgg16: side of the classifier's images")
    parser.add_argument("--gelu", action="store_true", help="clip: trained with GELU (LAION), not quick_gelu (OpenAI)")
    parser.add_argument("--vision-heads", type=int, help="clip: heads of the image tower, where not width / 64 (ViT-g-14: 16)")
    args = parser.parse_args()
    if not args.file.is_file():
        sys.exit(f"convert_weights.py: {args.file}: no such file")
    source = sha256(args.file)
    print(f"{args.file.name}: SHA-256 {source}")
    state = read_state(args.file)
    kind = args.kind or kind_of(state)
    if kind == "checkpoint":
        return write_checkpoint(state, args, source)
    state, config = {"inception": inception, "clip": clip, "vgg16": vgg16, "dinov2": dinov2, "lpips": lpips}[kind](state, args)
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / "model.safetensors"
    save_file({k: v.contiguous().clone() for k, v in sorted(state.items())}, target,
              metadata={"format": "pt", "source": args.file.name, "source_sha256": source})
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    print(f"{target}: {kind}, {len(state)} tensors, SHA-256 {sha256(target)}")
    if kind == "clip":
        print(f"{args.out}: add the tokenizer's vocab.json, merges.txt and tokenizer_config.json (openai/clip-vit-base-patch32 has them)")


if __name__ == "__main__":
    main()
