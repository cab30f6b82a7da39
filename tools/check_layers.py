#!/usr/bin/env python3
"""Fails when an include goes up the layers, or when torch and ATen are seen where they should not be.

usage: tools/check_layers.py [ROOT]      prints one line a violation; exit 1 when there is any
"""
import pathlib
import re
import sys

# A folder may include itself and everything before it; folders of one group do not see each other.
ORDER = [
    {"src/base"}, {"src/config"}, {"src/tensor"}, {"src/io", "src/dist"}, {"src/nn"}, {"src/text"}, {"src/models"},
    {"src/diffusion", "src/decoding"}, {"src/pipelines"}, {"datasets"}, {"trainers", "eval"}, {"tools"}, {"tests"},
]
LEVEL = {folder: level for level, group in enumerate(ORDER) for folder in group}
# libtorch's headers below ATen: autograd nodes and c10d. ATen is in the precompiled header; these cost seconds each.
TORCH = {"src/dist", "src/nn/gradients.cpp", "src/nn/recompute.cpp", "src/nn/fused.cpp", "src/nn/fused_node.h", "tests"}
# Headers private to their folder, seen by two or three sources that need the type whole.
PRIVATE = {"src/dist/gloo_backend.h", "src/dist/group_world.h", "src/nn/fused_node.h"}
PCH = "src/tensor/pch.h"
JSON = {PCH, "src/models/json_fields.h"}  # readers of config.json: used where such files are read
TORCH_FREE = {"src/base", "src/config"}  # no tensors at all: they compile in a second, and so do their tests
YAML = {"src/config"}
CLI = {"tools", "tests/bench"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]', re.MULTILINE)


def folder_of(path):
    parts = path.split("/")
    folder = "/".join(parts[:2]) if parts[0] == "src" else parts[0]
    return folder if folder in LEVEL else None


def allowed(path, places):
    return any(path == place or path.startswith(place + "/") for place in places)


def check(root, path):
    """Yields (line, what is wrong) for one file."""
    text = (root / path).read_text(encoding="utf-8")
    own = folder_of(path)
    for match in INCLUDE.finditer(text):
        line, quote, name = text.count("\n", 0, match.start(2)) + 1, match[1], match[2]
        other = folder_of(name)
        if quote == '"' and "/" not in name:
            yield line, f"'{name}': write includes from the root of the repository"
        elif quote == '"' and other is None:
            yield line, f"'{name}' is in no known folder"
        elif quote == '"' and not (root / name).is_file():
            yield line, f"'{name}' does not exist"
        elif other and other != own and LEVEL[other] >= LEVEL[own]:
            yield line, f"{own} must not know {other} ('{name}')"
        if name.startswith("torch/"):
            if path.endswith(".h") and path not in PRIVATE:
                yield line, f"'{name}' in a header: every source that sees it pays seconds"
            elif not allowed(path, TORCH):
                yield line, f"'{name}': torch headers only in {', '.join(sorted(TORCH))}"
        if name.startswith(("ATen/", "c10/", "torch/")) and own in TORCH_FREE:
            yield line, f"'{name}': {own} is free of tensors"
        if name == "ATen/ATen.h" and path.endswith(".h") and path not in ("src/tensor/ops.h", PCH):
            yield line, "'ATen/ATen.h' in a header: include src/tensor/tensor.h, and src/tensor/ops.h in sources"
        if name == "src/tensor/ops.h" and path.endswith(".h"):
            yield line, "'src/tensor/ops.h' in a header: include src/tensor/tensor.h"
        if name.startswith("yaml-cpp/") and not allowed(path, YAML):
            yield line, f"'{name}': yaml-cpp only in {', '.join(YAML)}"
        if name.startswith("CLI/") and (path.endswith(".h") or not allowed(path, CLI)):
            yield line, f"'{name}': only in sources of tools/ and tests/bench/"
        if name in PRIVATE and own != other and own != "tests":
            yield line, f"'{name}' is private to {other}"
        if name == "nlohmann/json.hpp" and path.endswith(".h") and path not in PRIVATE | JSON:
            yield line, "'nlohmann/json.hpp' in a header: include src/base/json.h"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
    tops = ("src", "datasets", "trainers", "eval", "tools", "tests")
    files = [p for top in tops for p in sorted((root / top).rglob("*")) if p.suffix in (".h", ".cpp")]
    if not files:
        sys.exit(f"{root}: no sources here")
    bad = 0
    for file in files:
        path = file.relative_to(root).as_posix()
        if path.endswith(".h") and "#pragma once" not in file.read_text(encoding="utf-8"):
            print(f"{path}:1: a header without #pragma once")
            bad += 1
        for line, what in check(root, path):
            print(f"{path}:{line}: {what}")
            bad += 1
    print(f"{len(files)} files, {bad} violations")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
