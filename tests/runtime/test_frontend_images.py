"""Image headers against the reference implementation, and hostile files against nothing but RequestError."""

from __future__ import annotations

import base64
import contextlib
import io
import random
import struct
import zlib
from typing import Any

import pytest
from PIL import Image, PngImagePlugin
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_resize

from epd_runtime.frontend.errors import RequestError
from epd_runtime.frontend.images import ImageLimits, ResizeRule, decode_data, read_size, smart_resize

LIMITS = ImageLimits(max_images=4, max_file_bytes=1 << 20, max_pixels=1 << 22)


def image_file(form: str, size: tuple[int, int] = (40, 24), orientation: int | None = None, **options: Any) -> bytes:
    image = Image.new("RGB", size, (200, 10, 10))
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def reference_size(data: bytes) -> tuple[int, int]:
    image = load_image(base64.b64encode(data).decode())
    return image.height, image.width


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_smart_resize_equals_the_reference() -> None:
    draw = random.Random(1)
    for _ in range(5000):
        height, width = draw.randint(1, 3000), draw.randint(1, 3000)
        if max(height, width) > 200 * min(height, width):
            continue
        rule = ResizeRule(
            draw.choice((28, 32)), draw.choice((784, 3136)), draw.choice((100_352, 1_003_520, 12_845_056))
        )
        expected = reference_resize(height, width, rule.factor, rule.min_pixels, rule.max_pixels)
        assert smart_resize(height, width, rule) == expected


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_sizes_of_every_format(form: str) -> None:
    data = image_file(form)
    assert read_size(data, LIMITS, "image 0") == reference_size(data) == (24, 40)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_swaps_as_the_reference_does(form: str, orientation: int) -> None:
    data = image_file(form, orientation=orientation)
    assert read_size(data, LIMITS, "image 0") == reference_size(data)


def test_exif_behind_the_pixels_of_a_png() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = image_file("PNG")
    data = plain[:-12] + png_chunk(b"eXIf", exif.tobytes()[6:]) + plain[-12:]
    assert read_size(data, LIMITS, "image 0") == reference_size(data) == (40, 24)


def test_xmp_orientation() -> None:
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    data = image_file("PNG", pnginfo=info)
    assert read_size(data, LIMITS, "image 0") == reference_size(data)


def test_a_gif_counts_its_first_frame() -> None:
    frames = [Image.new("P", (40, 24)), Image.new("P", (40, 24), 1)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert read_size(buffer.getvalue(), LIMITS, "image 0") == (24, 40)


@pytest.mark.parametrize(
    ("size", "reason"),
    [((3000, 3000), "more than the limit"), ((2010, 10), "aspect ratio"), ((65500, 65500), "more than the limit")],
)
def test_sizes_are_refused_from_the_header(size: tuple[int, int], reason: str) -> None:
    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    with pytest.raises(RequestError, match=reason) as caught:
        read_size(bomb, LIMITS, "image 0")
    assert caught.value.status == 400


def test_other_formats_are_refused() -> None:
    with pytest.raises(RequestError, match="PNG, JPEG, WEBP, GIF, BMP"):
        read_size(image_file("TIFF"), LIMITS, "image 3")


def test_hostile_files_raise_only_request_errors() -> None:
    draw = random.Random(2)
    seeds = [image_file(form, orientation=6 if form != "BMP" else None) for form in ("PNG", "JPEG", "WEBP", "BMP")]
    seeds += [image_file("GIF"), b"", b"\0", b"GIF89a", b"RIFF\xff\xff\xff\xffWEBPVP8X"]
    for _ in range(3000):
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.randint(0, 12)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        with contextlib.suppress(RequestError):
            height, width = read_size(bytes(data[: draw.randint(0, len(data))]), LIMITS, "image 0")
            assert 0 < height * width <= LIMITS.max_pixels


def test_data_sources() -> None:
    text = base64.b64encode(b"some bytes!").decode()
    for source in (text, f"data:image/png;base64,{text}", f"DATA:;BASE64,{text}", f"{text[:4]}\n{text[4:]}"):
        assert decode_data(source, LIMITS, "image 0") == b"some bytes!"


@pytest.mark.parametrize(
    "source", ["data:image/png,abc", "data:", "data:image/png;base64", "ä", "abc", "a-_=", "====="]
)
def test_broken_data_sources(source: str) -> None:
    with pytest.raises(RequestError, match="image 0") as caught:
        decode_data(source, LIMITS, "image 0")
    assert caught.value.status == 400


def test_files_over_the_limit_are_refused() -> None:
    with pytest.raises(RequestError, match="larger than 1 MiB"):
        decode_data(base64.b64encode(bytes((1 << 20) + 1)).decode(), LIMITS, "image 0")
    assert len(decode_data(base64.b64encode(bytes(1 << 20)).decode(), LIMITS, "image 0")) == 1 << 20
