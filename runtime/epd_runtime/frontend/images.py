"""Image files as the API process sees them: only their headers.

The size in the header decides how many placeholder tokens an image gets, so prompts can be built before, and elsewhere
than, pixels are decoded. The upright size must equal what the engine sees after applying the EXIF orientation.
Files come from strangers: whatever a parser raises becomes a RequestError, and no size is trusted before it is checked.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import math
import warnings

from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from epd_runtime.frontend.errors import RequestError, bad_request

# Named so that the plugins are loaded here and not by a search at the first request.
FORMATS = tuple(
    plugin.format
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
    )
)
MAX_ASPECT_RATIO = 200
SIDEWAYS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
LATE_METADATA = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # PNG chunks that may follow the pixels

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # our own limit is checked instead


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """What one request may bring. Sizes in bytes and pixels; those of a video are of each frame."""

    max_images: int
    max_file_bytes: int
    max_pixels: int
    max_videos: int = 4
    max_video_frames: int = 768
    max_video_seconds: float = 600.0


@dataclasses.dataclass(frozen=True)
class ResizeRule:
    """How a model family resizes: both sides become multiples of factor, the area stays within the two bounds."""

    factor: int
    min_pixels: int
    max_pixels: int


def decode_data(source: str, limits: ImageLimits, param: str) -> bytes:
    """Bytes of a data: URL or bare base64 string; raises RequestError 400 naming `param`."""
    payload = source
    if source[:5].lower() == "data:":
        header, comma, payload = source.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise bad_request(f"{param}: a data URL must look like data:TYPE;base64,...", param)
    if len(payload) // 4 * 3 > limits.max_file_bytes + 3:
        raise too_large(limits, param)
    try:
        data = base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(
            f"{param} is neither an http(s) URL, a data URL nor valid base64 ({error}); encode the file as base64",
            param,
        ) from None
    if len(data) > limits.max_file_bytes:
        raise too_large(limits, param)
    return data


def too_large(limits: ImageLimits, param: str) -> RequestError:
    """The file exceeds the limit on its size."""
    megabytes = limits.max_file_bytes // (1024 * 1024)
    return bad_request(f"{param}: the file is larger than {megabytes} MiB; send a smaller one", param)


def read_size(data: bytes, limits: ImageLimits, param: str) -> tuple[int, int]:
    """Upright (height, width) of an image file from its header; raises RequestError 400 naming `param`.

    Decodes pixels only for a PNG whose orientation may stand behind them.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_size(image.width, image.height, limits, param)
            orientation = _orientation(image, data)
            width, height = image.size
    except RequestError:
        raise
    except Image.DecompressionBombError:  # the library's own limit stands before ours
        raise bad_request(f"{param}: its pixels are more than the limit; send a smaller image", param) from None
    except Exception as error:  # parsers of hostile files raise nearly everything
        kinds = ", ".join(str(name) for name in FORMATS)
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({type(error).__name__}: {error})"
        raise bad_request(f"{param} is not a readable image{reason}; send one of {kinds}", param) from None
    return (width, height) if orientation in SIDEWAYS else (height, width)


def check_size(width: int, height: int, limits: ImageLimits, param: str) -> None:
    """Raise RequestError 400 naming `param` for sides that cannot be resized or are more than the limit."""
    if width < 1 or height < 1:
        raise bad_request(f"{param}: the image is {width}x{height} pixels; both sides must be at least 1", param)
    if width * height > limits.max_pixels:
        raise bad_request(
            f"{param}: {width}x{height} pixels are more than the limit of {limits.max_pixels}; send a smaller image",
            param,
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise bad_request(
            f"{param}: the image is {width}x{height} pixels; its aspect ratio must not exceed {MAX_ASPECT_RATIO}", param
        )


def _orientation(image: Image.Image, data: bytes) -> int:
    late = image.format == "PNG" and "exif" not in image.info and any(marker in data for marker in LATE_METADATA)
    # The base class's method reads only what stands before the pixels, PNG's own decodes them all.
    exif = image.getexif() if late else Image.Image.getexif(image)
    value = exif.get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) else 1


def smart_resize(height: int, width: int, rule: ResizeRule) -> tuple[int, int]:
    """(height, width) in pixels to which the model's preprocessor scales an image of the given size.

    Rounds half to even as the reference preprocessor does. The caller has checked the aspect ratio.
    """
    factor = rule.factor
    rounded = round(height / factor) * factor, round(width / factor) * factor
    area = rounded[0] * rounded[1]
    if area > rule.max_pixels:
        shrink = math.sqrt((height * width) / rule.max_pixels)
        return _floor(height / shrink, factor), _floor(width / shrink, factor)
    if area < rule.min_pixels:
        grow = math.sqrt(rule.min_pixels / (height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return rounded


def _floor(side: float, factor: int) -> int:
    return max(factor, math.floor(side / factor) * factor)
