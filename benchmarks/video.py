"""What a video file costs before the vision tower: reading its header, decoding, resizing the frames that are read.

python benchmarks/video.py [--seconds 10] [--height 720] [--width 1280] [--fps 30]
"""

from __future__ import annotations

import argparse
import io
import time

import av
import numpy as np

from epd_runtime.encoder.video import resize
from epd_runtime.video_file import read_frames, read_header

READ_PER_SECOND = 2


def movie(seconds: int, height: int, width: int, fps: int) -> bytes:
    """An H.264 file of a moving pattern."""
    file = io.BytesIO()
    pattern = (np.indices((height, width)).sum(0) % 256).astype(np.uint8)
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for index in range(seconds * fps):
            pixels = np.repeat(np.roll(pattern, 3 * index, axis=1)[..., None], 3, axis=2)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


def main() -> None:
    """Print one line per step, in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("seconds", 10), ("height", 720), ("width", 1280), ("fps", 30)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    data = movie(args.seconds, args.height, args.width, args.fps)
    read_header(data)  # imports the library
    started = time.perf_counter()
    header = read_header(data)
    print(f"header                 {1e3 * (time.perf_counter() - started):8.1f} ms")
    started = time.perf_counter()
    frames = list(read_frames(data, range(0, header.num_frames, args.fps // READ_PER_SECOND), 1 << 26))
    print(f"decode {header.num_frames:5d} frames    {1e3 * (time.perf_counter() - started):8.1f} ms")
    started = time.perf_counter()
    for frame in frames:
        resize(frame, 448, 784, "bicubic")
    print(f"resize {len(frames):5d} frames    {1e3 * (time.perf_counter() - started):8.1f} ms")


if __name__ == "__main__":
    main()
