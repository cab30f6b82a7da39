#!/usr/bin/env python3
"""Makes tests/golden/io/{resize,images}.safetensors: Pillow's resampling and decoding, which src/io must equal.

Needs pillow, numpy, safetensors. Usage: tools/golden/images.py [OUT_DIR]
"""
import io
import pathlib
import sys

import numpy as np
import PIL
from PIL import Image
from safetensors.numpy import save_file

FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}
SIZES = [(20, 15), (61, 10), (10, 43), (80, 60), (7, 5), (1, 1), (61, 43), (150, 12), (30, 86)]


def picture(height, width, channels, seed):
    """Gradients, an edge and noise: exercises rounding and clipping."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [((x * (3 + c) + y * (5 - c)) % 256) * (x > width // 3) + 255 * (y > height * 2 // 3) for c in range(channels)]
    noise = rng.integers(-40, 41, (height, width, channels))
    return np.clip(np.stack(planes, -1) + noise, 0, 255).astype(np.uint8)


def make_resize():
    out = {}
    for name, array in {
        "rgb": picture(43, 61, 3, 0),
        "grey": picture(43, 61, 1, 1),
        "wide": picture(6, 700, 3, 2),
    }.items():
        out[f"input.{name}"] = np.ascontiguousarray(array.transpose(2, 0, 1))
        image = Image.fromarray(array[..., 0] if name == "grey" else array)
        for filter_name, value in FILTERS.items():
            for width, height in [(24, 3), (701, 5)] if name == "wide" else SIZES:
                # One axis at a time: newer versions of Pillow choose the order of the passes by cost, all of them
                # up to 12 (with which published numbers were made) go horizontally first.
                resized = np.asarray(image.resize((width, image.height), value).resize((width, height), value))
                resized = resized[..., None] if resized.ndim == 2 else resized
                out[f"expected.{name}.{filter_name}.{width}x{height}"] = np.ascontiguousarray(resized.transpose(2, 0, 1))
    return out


def encode(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def on_white(array):
    colour, alpha = array[..., :-1].astype(np.int64), array[..., -1:].astype(np.int64)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def make_images():
    rgb, grey = Image.fromarray(picture(17, 26, 3, 3)), Image.fromarray(picture(17, 26, 1, 4)[..., 0])
    rgba = Image.fromarray(picture(17, 26, 4, 5), "RGBA")
    grey_alpha = Image.fromarray(picture(17, 26, 2, 6), "LA")
    deep = np.random.default_rng(7).integers(0, 65536, (9, 11)).astype(np.uint16)
    smooth = rgb.resize((26, 17)).resize((52, 34), Image.BICUBIC)
    palette, bits = rgb.quantize(13), grey.convert("1")
    files, expected = {}, {}

    def add(name, data, pixels):
        pixels = np.asarray(pixels)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        files[name], expected[name] = np.frombuffer(data, np.uint8), np.ascontiguousarray(pixels.transpose(2, 0, 1))

    add("rgb.png", encode(rgb, format="png"), rgb)
    add("grey.png", encode(grey, format="png"), grey)
    add("rgba.png", encode(rgba, format="png"), on_white(np.asarray(rgba)))
    add("grey_alpha.png", encode(grey_alpha, format="png"), on_white(np.asarray(grey_alpha)))
    add("deep.png", encode(Image.fromarray(deep), format="png"), np.round(deep / 257.0).astype(np.uint8))
    add("palette.png", encode(palette, format="png"), palette.convert("RGB"))
    add("bits.png", encode(bits, format="png"), bits.convert("L"))
    transparent = encode(palette, format="png", transparency=0)
    add("palette_transparent.png", transparent, on_white(np.asarray(Image.open(io.BytesIO(transparent)).convert("RGBA"))))

    def add_jpeg(name, image, **options):
        data = encode(image, format="jpeg", **options)
        add(name, data, Image.open(io.BytesIO(data)).convert("L" if image.mode == "L" else "RGB"))

    add_jpeg("420.jpg", smooth, quality=80)
    add_jpeg("444.jpg", smooth, quality=95, subsampling=0)
    add_jpeg("progressive.jpg", smooth, quality=80, progressive=True)
    add_jpeg("grey.jpg", grey, quality=90)
    add_jpeg("cmyk.jpg", smooth.convert("CMYK"), quality=95)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(smooth.crop((0, 0, 24, 16)), format="jpeg", quality=90, exif=exif)
        from PIL import ImageOps

        add(f"exif{orientation}.jpg", data, ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    add("lossless.webp", encode(rgb, format="webp", lossless=True), rgb)
    add("alpha.webp", encode(rgba, format="webp", lossless=True, exact=True), on_white(np.asarray(rgba)))
    lossy = encode(smooth, format="webp", quality=80)
    add("lossy.webp", lossy, Image.open(io.BytesIO(lossy)).convert("RGB"))
    return {f"file.{k}": v for k, v in files.items()} | {f"expected.{k}": v for k, v in expected.items()}


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/io")
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in {"resize": make_resize(), "images": make_images()}.items():
        save_file(tensors, folder / f"{name}.safetensors", {"pillow": PIL.__version__})
        print(folder / f"{name}.safetensors", len(tensors), (folder / f"{name}.safetensors").stat().st_size)
