"""A folder of clips as people have them: good ones, odd ones, and one of each fault."""

import pathlib

import numpy as np

from tests.image.clips import ffmpeg, make_clip, moving

RATE, SIZE, LENGTH = 16, (96, 64), 17
"""That are wanted of it; a good clip has 20 frames."""

FRAMES = 20

EXPECTED = {
    "good.mp4": (),
    "av1.mp4": (),
    "h264.mkv": (),
    "motion.mov": (),
    "vp9.webm": (),
    "xvid.avi": (),
    "h264.avi": (),
    "loop.gif": ("other-rate",),
    "depth.mov": ("depth",),
    "faster.mp4": ("other-rate",),
    "odd.mp4": ("resized",),
    "turned.mov": ("turned",),
    "wide pixels.mp4": ("pixel-shape", "resized"),
    "varying.mkv": ("varying-rate",),
    "still.mp4": ("still",),
    "really.mp4": ("suffix",),
    "black.mp4": ("constant",),
    "cut.avi": ("truncated",),
    "cut.gif": ("truncated",),
    "cut.mp4": ("truncated",),
    "cut.webm": ("truncated",),
    "twin.mp4": ("duplicate",),
    "remuxed.mkv": ("duplicate",),
    "hole.mp4": ("damaged",),
    "no caption.mp4": ("no-caption",),
    "empty caption.mp4": ("empty-caption",),
    "latin caption.mp4": ("encoding",),
    "short.mp4": ("too-short",),
    "small.mp4": ("too-small",),
    "sound.mp4": ("no-video",),
    "sound.webm": ("no-video",),
    "strip.mp4": ("bounds",),
    "text.mp4": ("not-media",),
    "junk.mp4": ("unreadable",),
    "zero.mp4": ("empty",),
    "picture.png": ("resized",),
    "flat.png": ("constant",),
    "torn.jpg": ("truncated",),
    "film.flv": ("format",),
    "notes.md": ("passed-over",),
    "stray.txt": ("passed-over",),
}
"""The kinds of finding by the file's name."""


def make_broken_clips(folder: pathlib.Path) -> None:
    """Makes all of `EXPECTED`, each with its caption."""
    _make_good_ones(folder)
    _make_odd_ones(folder)
    _make_broken_ones(folder)
    _make_pictures(folder)
    for name in EXPECTED:
        path = folder / name
        if path.suffix in (".txt", ".md", ".flv") or name.startswith("no caption"):
            continue
        path.with_suffix(".txt").write_text(f"a grey square in the middle, {path.stem}\n")
    (folder / "empty caption.txt").write_text(" \n")
    (folder / "latin caption.txt").write_bytes("ein grünes Quadrat".encode("latin-1"))
    (folder / ".hidden.mp4").write_bytes(b"")


def _clip(folder: pathlib.Path, name: str, *options: str, seed: int = 0, **others) -> bytes:
    """Each has its own pixels, that none is another's copy."""
    frames = others.pop("frames", None)
    frames = moving(FRAMES, *SIZE) if frames is None else frames
    rng = np.random.default_rng(len(name) + 1000 * seed + sum(name.encode()))
    noise = rng.integers(-24, 25, frames.shape[1:])
    frames = np.clip(frames.astype(int) + noise, 0, 255).astype(np.uint8)
    return make_clip(folder / name, frames, *options, **({"rate": str(RATE)} | others))


def _make_good_ones(folder: pathlib.Path) -> None:
    _clip(folder, "good.mp4")
    _clip(folder, "av1.mp4", "-c:v", "libaom-av1", "-cpu-used", "8", "-crf", "30")
    _clip(folder, "h264.mkv")
    _clip(folder, "motion.mov", "-c:v", "mjpeg", "-pix_fmt", "yuvj420p")
    _clip(folder, "vp9.webm", "-c:v", "libvpx-vp9", "-b:v", "1M")
    _clip(folder, "xvid.avi", "-c:v", "mpeg4", "-q:v", "3", "-bf", "2")
    _clip(folder, "h264.avi")


def _make_odd_ones(folder: pathlib.Path) -> None:
    _clip(folder, "loop.gif", "-c:v", "gif", "-pix_fmt", "rgb8", rate="12.5")
    _clip(folder, "depth.mov", "-pix_fmt", "yuv422p10le")
    _clip(folder, "faster.mp4", frames=moving(50), rate="30")
    _clip(folder, "odd.mp4", "-pix_fmt", "yuv444p", frames=moving(FRAMES, 97, 65))
    _clip(folder, "upright.mp4", frames=moving(FRAMES, 64, 96))
    ffmpeg("-display_rotation", "90", "-i", folder / "upright.mp4", "-c", "copy",
           folder / "turned.mov")  # fmt: skip
    (folder / "upright.mp4").unlink()
    _clip(folder, "wide pixels.mp4", "-vf", "setsar=2/1")
    select = ("-vf", "select='lte(n,10)+not(mod(n,7))'", "-fps_mode", "vfr")
    _clip(folder, "varying.mkv", *select, frames=moving(50))
    _clip(folder, "still.mp4", frames=np.repeat(moving(1), FRAMES, axis=0))
    _clip(folder, "really.webm", "-c:v", "libvpx-vp9", "-b:v", "1M")
    (folder / "really.webm").rename(folder / "really.mp4")


def _make_broken_ones(folder: pathlib.Path) -> None:
    make_clip(folder / "black.mp4", np.zeros((FRAMES, 64, 96, 3), np.uint8), rate=str(RATE))
    for suffix, options in {
        "avi": ("-c:v", "mpeg4"), "gif": ("-c:v", "gif", "-pix_fmt", "rgb8"), "mp4": (),
        "webm": ("-c:v", "libvpx-vp9", "-b:v", "1M"),
    }.items():  # fmt: skip
        data = _clip(folder, f"cut.{suffix}", *options)
        (folder / f"cut.{suffix}").write_bytes(data[: len(data) * 2 // 3])
    good = (folder / "good.mp4").read_bytes()
    (folder / "twin.mp4").write_bytes(good)
    ffmpeg("-i", folder / "good.mp4", "-c", "copy", folder / "remuxed.mkv")
    data = bytearray(_clip(folder, "hole.mp4", "-g", "5"))
    middle = (data.index(b"mdat") + data.index(b"moov")) // 2
    data[middle : middle + 1500] = bytes(1500)
    (folder / "hole.mp4").write_bytes(data)
    for name in ("no caption", "empty caption", "latin caption"):
        _clip(folder, f"{name}.mp4")
    _clip(folder, "short.mp4", frames=moving(7))
    _clip(folder, "small.mp4", frames=moving(FRAMES, 64, 48))
    _clip(folder, "with sound.mp4", "-c:a", "aac", sound=True)
    ffmpeg("-i", folder / "with sound.mp4", "-vn", "-c:a", "copy", folder / "sound.mp4")
    ffmpeg("-i", folder / "with sound.mp4", "-vn", "-c:a", "libopus", folder / "sound.webm")
    (folder / "with sound.mp4").unlink()
    _clip(folder, "strip.mp4", frames=moving(FRAMES, 576, 64))
    (folder / "text.mp4").write_text("a red circle moving right\n")
    (folder / "junk.mp4").write_bytes(good[:24] + bytes(range(256)) * 20)
    (folder / "zero.mp4").write_bytes(b"")


def _make_pictures(folder: pathlib.Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 256, (80, 120, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    Image.new("RGB", SIZE, (200, 30, 30)).save(folder / "flat.png")
    Image.fromarray(pixels).save(folder / "torn.jpg")
    (folder / "torn.jpg").write_bytes((folder / "torn.jpg").read_bytes()[:300])
    (folder / "film.flv").write_bytes(b"FLV\1\5\0\0\0\t")
    (folder / "notes.md").write_text("where they are from\n")
    (folder / "stray.txt").write_text("a caption of nothing\n")
