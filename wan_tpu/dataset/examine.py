"""One file decoded from beginning to end: what it has, and what is wrong with it by itself."""

import dataclasses
import hashlib
from fractions import Fraction

import numpy as np
from PIL import Image

from wan_tpu.dataset.decode import Measured, stored_rate
from wan_tpu.dataset.entry import Entry, Kind
from wan_tpu.dataset.faults import Finding, kind_of_error
from wan_tpu.dataset.stored_frames import read_stored, stored_info
from wan_tpu.errors import MediaError
from wan_tpu.image.clip_details import (
    THUMBNAIL_SIDE,
    ClipDetails,
    Look,
    Looking,
    examine_clip,
)
from wan_tpu.image.clip_file import AVI, GIF, HEAD_BYTES, clip_type_of
from wan_tpu.image.clip_reader import OWN_FILES
from wan_tpu.image.picture import read_picture

_SUFFIXES = {
    "video/mp4": (".mp4", ".m4v", ".mov", ".qt", ".3gp"),
    "video/quicktime": (".mov", ".qt", ".mp4", ".m4v", ".3gp"),
    "video/webm": (".webm", ".mkv"),
    "video/x-matroska": (".mkv",),
    AVI: (".avi",),
    GIF: (".gif",),
    "image/png": (".png",),
    "image/jpeg": (".jpg", ".jpeg"),
    "image/webp": (".webp",),
}
"""Of files by their type; MP4 and MOV are the same format with other words."""

FLAT = 6
"""Of 255: values of thumbnails that lie closer together are the same, but for coding."""

LOST_SHARE = Fraction(1, 50)
"""Of the frames that a decoder may not give: more is damage."""

LOST_SECONDS = Fraction(1, 2)
"""Between what a file says it has and what is there: rounding, or the delay of sound."""

UNEVEN = Fraction(3, 2)
"""Longest to shortest time between frames; even rates vary by the unit in which files count."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What one file is.

    Attributes:
        entry: the file; of several with one path the first.
        digest: SHA-256 of its bytes; empty where it cannot be read.
        measured: as `wan_tpu.dataset.decode.measure` says; None where it cannot be decoded.
        look: of its frames, None likewise.
        words: format, rate and length, for people.
        findings: faults and notes of the file by itself.
    """

    entry: Entry
    digest: str = ""
    measured: Measured | None = None
    look: Look | None = None
    words: str = ""
    findings: tuple[Finding, ...] = ()


def examine(entry: Entry, *, fps: float | Fraction) -> Examined:
    """Decodes all of a file; errors become findings.

    Args:
        entry: the file.
        fps: the model's frame rate.
    """
    digest = ""
    try:
        with entry.path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not head:
            fault = Finding(name=entry.name, kind="empty", words="it has 0 bytes")
            return Examined(entry=entry, digest=digest, findings=(fault,))
        look_at = {Kind.CLIP: _clip, Kind.PICTURE: _picture, Kind.FRAMES: _frames}[entry.kind]
        examined = look_at(entry, fps)
    except MediaError as error:
        message = str(error)
        fault = Finding(name=entry.name, kind=kind_of_error(message), words=message)
        return Examined(entry=entry, digest=digest, findings=(fault,))
    except OSError as error:
        words = f"it cannot be read: {error.strerror or type(error).__name__}"
        fault = Finding(name=entry.name, kind="unreadable", words=words)
        return Examined(entry=entry, digest=digest, findings=(fault,))
    findings = (*examined.findings, *_of_suffix(entry, head), *_of_look(entry, examined.look))
    return dataclasses.replace(examined, digest=digest, findings=findings)


def _clip(entry: Entry, fps: float | Fraction) -> Examined:
    details = examine_clip(entry.path, OWN_FILES)
    measured = Measured(
        entry=entry,
        width=details.width,
        height=details.height,
        duration=details.duration,
        keyframes=details.keyframes,
    )
    rate = details.num_frames / details.duration
    words = f"{details.codec}, {float(rate):.4g} frames per second, {float(details.duration):.2f} s"
    pairs = [*_damage(details), *_notes(details, rate, Fraction(fps))]
    findings = tuple(Finding(name=entry.name, kind=kind, words=text) for kind, text in pairs)
    return Examined(
        entry=entry, measured=measured, look=details.look, words=words, findings=findings
    )


def _damage(clip: ClipDetails) -> list[tuple[str, str]]:
    """Faults, and a note of what the decoder got over, as kind and words."""
    if clip.damage is not None:
        return [("damaged", f"of {clip.num_frames} frames {clip.damage}")]
    if clip.missing > max(LOST_SECONDS, (clip.duration + clip.missing) / 20):
        words = (
            f"it says that it has {float(clip.duration + clip.missing):.2f} s, and its frames end "
            f"after {float(clip.duration):.2f} s"
        )
        return [("damaged", words)]
    if clip.corrupt:  # and those that are predicted from them
        return [("damaged", f"{clip.corrupt} of {clip.num_frames} frames are not whole")]
    lost = max(clip.num_frames - clip.decoded, 0)
    if not lost:
        return []
    words = f"{lost} of {clip.num_frames} frames cannot be decoded"
    if lost > max(clip.num_frames * LOST_SHARE, 2):
        return [("damaged", words)]
    return [("repaired", f"{words}; those beside them are shown longer")]


def _notes(clip: ClipDetails, rate: Fraction, fps: Fraction) -> list[tuple[str, str]]:
    """What will be done with what is not as a model wants it, as kind and words."""
    notes = []
    taken = f"at each moment of {float(fps):g} per second the frame nearest in time is taken"
    if clip.num_frames > 2 and clip.longest > UNEVEN * clip.shortest:
        notes.append(
            (
                "varying-rate",
                f"{1000 * float(clip.shortest):.0f} to {1000 * float(clip.longest):.0f} ms between "
                f"frames; {taken}",
            )
        )
    elif clip.num_frames > 1 and abs(rate / fps - 1) > Fraction(1, 200):
        notes.append(("other-rate", f"{float(rate):.4g} frames per second; {taken}"))
    if clip.orientation != 1:
        notes.append(("turned", f"stored {_TURNS[clip.orientation]}; it is turned upright"))
    if clip.pixel_shape != 1:
        notes.append(
            ("pixel-shape", f"pixels of {clip.pixel_shape} times their height; made square")
        )
    if clip.is_hdr:
        notes.append(("depth", "HDR; it becomes what a screen of BT.709 shows, 8 bits"))
    elif clip.bits > 8:
        notes.append(("depth", f"{clip.bits} bits a sample; rounded to 8"))
    if clip.is_interlaced:
        notes.append(
            ("interlaced", "lines of two moments in each frame, which are learnt as they are")
        )
    return notes


_TURNS = {
    2: "mirrored",
    3: "upside down",
    4: "mirrored and upside down",
    5: "mirrored and on its side",
    6: "turned by 90 degrees to the left",
    7: "mirrored and on its side",
    8: "turned by 90 degrees to the right",
}
"""How a picture is stored, by Exif's number."""


def _picture(entry: Entry, fps: float | Fraction) -> Examined:
    pixels = read_picture(entry.path.read_bytes())
    height, width, _ = pixels.shape
    looking = Looking()
    looking.add(_thumbnail(pixels))
    measured = Measured(entry=entry, width=width, height=height, duration=None)
    return Examined(entry=entry, measured=measured, look=looking.end(), words="picture")


def _frames(entry: Entry, fps: float | Fraction) -> Examined:
    info, rate = stored_info(entry.path), stored_rate(entry, fps)
    looking = Looking()
    for frame in read_stored(entry.path, range(info.num_frames)):
        looking.add(_thumbnail(frame))
    measured = Measured(
        entry=entry, width=info.width, height=info.height, duration=info.num_frames / rate
    )
    findings = []
    if info.channels_first:
        words = f"{info.key} is [frames, 3, height, width]; its axes are exchanged"
        findings.append(Finding(name=entry.name, kind="channels-first", words=words))
    if entry.fps is None:
        words = f"no fps in its line: its frames are taken to be {float(rate):g} per second"
        findings.append(Finding(name=entry.name, kind="no-rate", words=words))
    words = f"{info.num_frames} frames stored"
    return Examined(
        entry=entry, measured=measured, look=looking.end(), words=words, findings=tuple(findings)
    )


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    side = THUMBNAIL_SIDE, THUMBNAIL_SIDE
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(side, Image.Resampling.BOX))


def _of_suffix(entry: Entry, head: bytes) -> list[Finding]:
    kind = clip_type_of(head)
    suffix = entry.path.suffix.lower()
    if kind not in _SUFFIXES or suffix in _SUFFIXES[kind]:
        return []
    words = f"its content is {kind}; it is read as that"
    return [Finding(name=entry.name, kind="suffix", words=words)]


def _of_look(entry: Entry, look: Look | None) -> list[Finding]:
    if look is None:
        return []
    if look.contrast < FLAT:
        colour = "black" if look.mean < 24 else "of one colour"
        words = f"every frame is {colour}" if entry.kind is not Kind.PICTURE else f"it is {colour}"
        return [Finding(name=entry.name, kind="constant", words=words)]
    if look.change < FLAT and entry.kind is not Kind.PICTURE:
        words = "all its frames are the same: a model learns to stand still from it"
        return [Finding(name=entry.name, kind="still", words=words)]
    return []
