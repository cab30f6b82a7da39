#!/usr/bin/env python3
"""Makes golden folders for `fewstep model verify`: a slim torchvision VGG16, and a CLIP tokenizer with a small vocabulary.

    python tools/golden/encoders.py OUT [--seed S]      (needs torch, torchvision, transformers, tokenizers, open_clip_torch)

OUT/vgg16: features and classifier of torchvision.models.vgg16 with every width divided by 32, images of 64 x 64 (the adaptive
pooling is the identity at the classifier's own size, hence left out). OUT/clip_tokenizer: vocab.json and merges.txt trained on
the captions below in CLIP's form, with what transformers' CLIPTokenizer and open_clip's SimpleTokenizer make of hard strings.
tests/golden/vgg16 and tests/golden/clip_tokenizer are OUT of the defaults.
"""
import argparse
import json
import pathlib

import torch

DIVISOR, SIDE, CLASSES = 32, 64, 10
CAPTIONS = """a photo of a cat sitting on a red sofa|two dogs are playing with a yellow ball in the park
a man riding a wave on top of a surfboard|it's what they'd call a painter's table, isn't it?
a plate of food with 12 pieces of broccoli and 3 carrots|the quick brown fox jumps over the lazy dog
a large clock tower in the middle of a city at night, highly detailed|an old wooden train station near mountains
naive cafe cooperate istanbul; we'll see: you've $1,234.56 or 7%|ein schoner garten mit grossen baumen"""
TEXTS = ['', ' ', 'a photo of a cat', '  leading and trailing  ', 'Hello,   world!!\n\nnew\tline', "it's we'll I'VE they'd DON'T",
         'naïve café coöperate Ångström', 'cafe\u0301 vs caf\u00e9', '\u0130stanbul D\u0130YARBAKIR \u00df \u1e9e \ufb01 ligature',
         '一只可爱的猫坐在沙发上', '日本語テキスト、カタカナ ﾊﾝｶｸ', '한국어 문장입니다', '👩\u200d👧 family 🏳️\u200d🌈 flag 👍🏽',
         'emoji🙂inside🙃word', 'price: $1,234.56 + 7% = ¥299', 'https://example.com/path?q=1&r=%20#frag', 'snake_case camelCase __dunder__',
         '1234567890 12 345 6', '\u00a0nbsp\u2003em-space\u200bzero\u200dwidth', 'Ζεύς και ΣΊΣΥΦΟΣ', '\ufeffBOM start', 'ctrl\x00\x01\x7f chars',
         '🧿𠀀 astral', '&amp; &lt;tag&gt; html', '<|endoftext|> mid <|endoftext|>', 'a' * 60, '\r\n windows \r\n lines',
         'don\u2019t \u201csmart quotes\u201d \u2013 dash\u2014em', 'a photo of a cat ' * 30, 'caption with trailing newline\n', "rock 'n' roll's '90s"]


def vgg16(out, seed):
    from safetensors.torch import save_file
    from torchvision.models.vgg import cfgs, make_layers
    torch.manual_seed(seed)
    features = make_layers([v if v == "M" else v // DIVISOR for v in cfgs["D"]], batch_norm=False).eval()
    classifier = torch.nn.Sequential(torch.nn.Linear(512 // DIVISOR * (SIDE // 32) ** 2, 4096 // DIVISOR), torch.nn.ReLU(), torch.nn.Dropout(),
                                     torch.nn.Linear(4096 // DIVISOR, 4096 // DIVISOR), torch.nn.ReLU(), torch.nn.Dropout(),
                                     torch.nn.Linear(4096 // DIVISOR, CLASSES)).eval()
    for p in [*features.parameters(), *classifier.parameters()]:
        p.data = torch.randn(p.shape) * (1.4 / p[0].numel() ** 0.5 if p.ndim > 1 else 0.1)
    x = torch.randn(2, 3, SIDE, SIDE)
    io, h = {"input.pixel_values": x}, x
    with torch.no_grad():
        stage = 0
        for layer in features:
            if isinstance(layer, torch.nn.MaxPool2d):
                stage += 1
                io[f"expected.stage{stage}"] = h
            h = layer(h)
        h = h.flatten(1)
        io["expected.logits"] = classifier(h)
        io["expected.fc2_relu"] = classifier[:5](h)
    out.mkdir(parents=True, exist_ok=True)
    state = {f"features.{k}": v for k, v in features.state_dict().items()} | {f"classifier.{k}": v for k, v in classifier.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, out / "model.safetensors")
    save_file({k: v.contiguous() for k, v in io.items()}, out / "io.safetensors")
    config = {"architecture": "torchvision VGG16", "channel_divisor": DIVISOR, "num_classes": CLASSES, "image_size": SIDE}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def clip_tokenizer(out):
    import regex
    from open_clip.tokenizer import SimpleTokenizer, _clean_lower, bytes_to_unicode
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer
    corpus = CAPTIONS.replace("|", "\n").split("\n")
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trained.train_from_iterator(corpus * 3, trainers.BpeTrainer(vocab_size=1400, end_of_word_suffix="</w>", min_frequency=2, show_progress=False))
    merges = [m if isinstance(m, str) else " ".join(m) for m in json.loads(trained.to_str())["model"]["merges"]]
    symbols = list(bytes_to_unicode().values())
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(m.split()) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    assert len(set(tokens)) == len(tokens)
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, separators=(",", ":")))
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    config = dict(model_max_length=77, bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
                  pad_token="<|endoftext|>", do_lower_case=True, tokenizer_class="CLIPTokenizer")
    (out / "tokenizer_config.json").write_text(json.dumps(config) + "\n")
    hf = CLIPTokenizer.from_pretrained(out)
    simple = SimpleTokenizer.__new__(SimpleTokenizer)
    pairs = [tuple(m.split()) for m in merges]
    simple.byte_encoder = bytes_to_unicode()
    simple.encoder = {t: i for i, t in enumerate(tokens)}
    simple.bpe_ranks = dict(zip(pairs, range(len(pairs))))
    simple.cache, simple.clean_fn = {}, _clean_lower
    simple.pat = regex.compile(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""", regex.IGNORECASE)
    open_clip = [simple.encode(t) for t in TEXTS]
    cases = [{"text": t, "ids": hf(t)["input_ids"], "decoded": hf.decode(hf(t)["input_ids"], skip_special_tokens=True)} for t in TEXTS]
    padded = [hf(t, padding="max_length", max_length=77, truncation=True)["input_ids"] for t in TEXTS]
    (out / "expected.json").write_text(json.dumps(dict(cases=cases, padded77_rows_first5=padded, open_clip_ids_no_special=open_clip)) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    vgg16(args.out / "vgg16", args.seed)
    clip_tokenizer(args.out / "clip_tokenizer")


if __name__ == "__main__":
    main()
