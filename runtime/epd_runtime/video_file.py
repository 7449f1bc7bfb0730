"""Video files, as strangers send them: their headers and their frames, through FFmpeg's libraries.

Files come as bytes. The container is told by its first bytes and never guessed, so that no playlist or other format
that names further files or addresses is ever opened; decoders are those of common video codecs. Whatever the library
raises becomes a VideoError, and no number of a header is trusted before it is checked. The library is imported with the
first video: that takes some 0.3 s, which no other server shall wait for at its start.
"""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

CODECS = frozenset(
    {"h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mjpeg", "mpeg1video", "mpeg2video", "theora", "prores", "h263"}
)
DECODERS = ",".join(sorted(CODECS | {"libdav1d", "libvpx", "libvpx-vp9"}))
MAX_PACKETS = 1 << 20  # counted where a header does not say how many frames there are
DECODE_SECONDS = 60.0  # for all frames of one video
MIN_SHARE = 0.5  # of the sampled frames that must be there; headers often promise a few frames too many

Frame = npt.NDArray[np.uint8]  # [height, width, 3], RGB


class VideoError(ValueError):
    """The file is no video that can be read; the message is for the client."""


@dataclasses.dataclass(frozen=True)
class VideoHeader:
    """What a file says of its video."""

    num_frames: int
    rate: float  # frames per second
    height: int
    width: int


def read_header(data: bytes) -> VideoHeader:
    """The header of a video file; raises VideoError. Decodes at most what FFmpeg needs to know the sizes."""
    with _open(data) as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        count = stream.frames or _count_packets(container, stream)
        if count < 1 or not 0 < rate < float("inf"):
            raise VideoError("the video has no frames or no frame rate")
        return VideoHeader(count, rate, stream.height, stream.width)


def read_frames(data: bytes, indices: Sequence[int], max_pixels: int) -> Iterator[Frame]:
    """The frames of a video file at these ascending indices, decoded one by one.

    Raises VideoError: the file cannot be decoded, a frame has more than max_pixels, or it takes too long. A file that
    ends a little before its header says gives its last frame in place of the missing ones.
    """
    wanted, found, last = list(indices), 0, None
    deadline = time.monotonic() + DECODE_SECONDS
    with _open(data) as (container, stream):
        stream.thread_type = "AUTO"
        for index, frame in enumerate(container.decode(stream)):
            if frame.width * frame.height > max_pixels:
                raise VideoError(f"a frame has {frame.width}x{frame.height} pixels, more than {max_pixels}")
            if time.monotonic() > deadline:
                raise VideoError(f"it cannot be decoded within {DECODE_SECONDS:g} s; send a shorter or smaller one")
            while found < len(wanted) and wanted[found] == index:
                last = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
                found += 1
                yield last
            if found == len(wanted):
                return
    if last is None or found < MIN_SHARE * len(wanted):
        raise VideoError(f"only {found} of {len(wanted)} frames can be decoded; the file is cut off")
    for _ in wanted[found:]:
        yield last


def pack_frames(files: Sequence[bytes]) -> bytes:
    """The image files of a video's frames as one piece of data."""
    return msgspec.msgpack.encode(list(files))


def unpack_frames(data: bytes) -> list[bytes]:
    """What pack_frames() packed."""
    return msgspec.msgpack.decode(data, type=list[bytes])


@contextmanager
def _open(data: bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    kind = _container(data)
    import av

    options = {"protocol_whitelist": "none", "codec_whitelist": DECODERS}
    try:
        with av.open(io.BytesIO(data), mode="r", format=kind, options=options) as container:
            if not container.streams.video:
                raise VideoError("it holds no video")
            stream = container.streams.video[0]
            codec = stream.codec_context.codec.canonical_name
            if codec not in CODECS:
                raise VideoError(f"codec {codec} is not supported; send one of {', '.join(sorted(CODECS))}")
            yield container, stream
    except VideoError:
        raise
    except (av.FFmpegError, ValueError, LookupError, ArithmeticError, MemoryError) as error:
        raise VideoError(f"it cannot be decoded ({type(error).__name__}: {str(error)[:200]})") from None


def _container(data: bytes) -> str:
    """FFmpeg's name of the container, by its first bytes; raises VideoError."""
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "mov"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data[:1] == b"\x47" and data[188:189] == b"\x47":
        return "mpegts"
    raise VideoError("it is no video file; send MP4, MOV, WebM, Matroska, AVI or MPEG-TS, or a list of frames")


def _count_packets(container: InputContainer, stream: VideoStream) -> int:
    count = 0
    for packet in container.demux(stream):
        count += packet.size > 0
        if count > MAX_PACKETS:
            raise VideoError(f"it has more than {MAX_PACKETS} frames")
    return count
