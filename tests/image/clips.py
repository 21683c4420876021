"""Clips for tests, made by the ffmpeg that writes our own videos: as cameras and browsers do."""

import pathlib
import subprocess

import imageio_ffmpeg
import numpy as np

from tests.image.pictures import corners

WIDTH, HEIGHT = 96, 64


def moving(num_frames: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Four corners, with a grey square in the middle whose brightness is the frame's number."""
    frames = np.repeat(corners(width, height)[None], num_frames, axis=0)
    for number, frame in enumerate(frames):
        frame[height // 4 : -height // 4, width // 4 : -width // 4] = level(number)
    return frames


def level(number: int) -> int:
    """The brightness of a frame."""
    return 20 + number * 4


def numbers(frames: np.ndarray) -> list[int]:
    """The frames' numbers, read from their middle."""
    _, height, width, _ = frames.shape
    middle = frames[:, height // 2 - 3 : height // 2 + 3, width // 2 - 3 : width // 2 + 3]
    levels = middle.astype(np.float64).mean(axis=(1, 2, 3))
    found = np.round((levels - 20) / 4)
    assert np.abs(levels - 20 - 4 * found).max() < 1.6, levels
    return found.astype(int).tolist()


def ffmpeg(*arguments: str | pathlib.Path, stdin: bytes = b"") -> None:
    """Runs it."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"]
    subprocess.run([*command, *map(str, arguments)], input=stdin, check=True)


def make_clip(
    path: pathlib.Path,
    frames: np.ndarray | None = None,
    *options: str,
    rate: str = "25",
    sound: bool = False,
) -> bytes:
    """A clip of frames, 50 of them if none are given, at a rate; options are the encoder's."""
    frames = moving(50) if frames is None else frames
    _, height, width, _ = frames.shape
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-framerate", rate]
    audio = ["-f", "lavfi", "-i", "sine=d=3"] if sound else []
    defaults = [] if "-pix_fmt" in options else ["-pix_fmt", "yuv420p"]
    if "-c:v" not in options:
        defaults += ["-c:v", "libx264", "-crf", "8"]
    ffmpeg(*source, "-i", "pipe:0", *audio, *defaults, *options, path, stdin=frames.tobytes())
    return path.read_bytes()
