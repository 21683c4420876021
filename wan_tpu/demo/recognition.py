"""Says from the pixels of a video which scene of the embedded models' worlds it shows.

Classical image processing, no model.

The background is the border's median, the colour the median of what differs from it, the direction
the way of the shape's centroid, the shape how full its bounding box is and how it tapers. Anything
that does not look like one compact shape on a plain background is `UNSEEN`, so that a blurred video
cannot be right by chance.
"""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np

from wan_tpu.demo import data

UNSEEN = "unseen"
WORDS = ("color", "shape", "direction", "background")

# Euclidean RGB distances (of 441). The palette's members are at least 140 apart, so 70 is never
# nearer to another.
COLOR_TOLERANCE = 70.0
FOREGROUND_DISTANCE = 70.0  # from the background; half of the least contrast of the palette
# Shares of the picture, which are pixels in one of 64 x 64. Drawn there, shapes have 240 (small
# triangle) to 570 (large square) pixels; those of 128 x 128, halved, 128 to 340.
MIN_AREA, MAX_AREA = 100 / 64**2, 1200 / 64**2
MIN_WAY = 16 / 64  # what the centroid must go; the clips go 0.33 to 0.66
BORDER = 2 / 64  # how wide the border is whose median is the background


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a video shows: a word of the grammar each, or `UNSEEN`."""

    color: str
    shape: str
    direction: str
    background: str

    def right_words(self, scene: data.Scene) -> dict[str, bool]:
        """For each of `WORDS`, whether the video obeys the scene."""
        return {word: getattr(self, word) == getattr(scene, word) for word in WORDS}


def judge_file(path: Path | str) -> Verdict:
    """The verdict on a video file."""
    # Here, so that a machine that trains needs no ffmpeg.
    from wan_tpu.pipeline.video_file import read_frames

    return judge_frames(read_frames(path))


def judge_frames(frames: np.ndarray) -> Verdict:
    """The verdict on a video.

    Args:
        frames: [frames, height, width, 3], uint8, RGB.
    """
    pixels = np.asarray(frames, dtype=np.float32)[..., :3]
    background = np.median(_border(pixels), axis=0)
    color = _foreground_color(pixels, background)
    name_of_background = _nearest(background, data.BACKGROUNDS)
    if color is None:
        return Verdict(color=UNSEEN, shape=UNSEEN, direction=UNSEEN, background=name_of_background)
    masks = _masks(pixels, background, color)
    return Verdict(
        color=_nearest(color, data.COLORS | data.NEW_COLORS),
        shape=_shape(masks),
        direction=_direction(masks),
        background=name_of_background,
    )


def _border(pixels: np.ndarray) -> np.ndarray:
    """The outermost pixels of every frame, [n, 3]; a shape covers at most a fifth of them."""
    width = round(BORDER * pixels.shape[1])
    inside = np.zeros(pixels.shape[1:3], dtype=bool)
    inside[width:-width, width:-width] = True
    return pixels[:, ~inside].reshape(-1, 3)


def _nearest(color: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    distances = {name: np.linalg.norm(color - np.array(rgb)) for name, rgb in palette.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= COLOR_TOLERANCE else UNSEEN


def _foreground_color(pixels: np.ndarray, background: np.ndarray) -> np.ndarray | None:
    """The median colour of the pixels that differ clearly from the background, or None."""
    distance = np.linalg.norm(pixels - background, axis=-1)  # [frames, height, width]
    seen = distance > FOREGROUND_DISTANCE
    if np.mean(seen) < MIN_AREA / 2:
        return None
    # The farther half leaves out the antialiased edge, which lies between the two colours.
    core = seen & (distance >= np.median(distance[seen]))
    return np.median(pixels[core], axis=0)


def _masks(pixels: np.ndarray, background: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Where the shape is, [frames, height, width], bool: nearer to its colour than to the other."""
    axis = color - background
    return (pixels - background) @ axis > 0.5 * float(axis @ axis)


def _sizable(masks: np.ndarray) -> np.ndarray:
    areas = masks.mean(axis=(1, 2))
    return np.flatnonzero((areas >= MIN_AREA) & (areas <= MAX_AREA))


def _direction(masks: np.ndarray) -> str:
    """The direction of the centroid's way from a straight line through its places."""
    visible = _sizable(masks)
    if len(visible) < len(masks) / 2:
        return UNSEEN
    rows, columns = np.arange(masks.shape[1]), np.arange(masks.shape[2])
    areas = masks[visible].sum(axis=(1, 2))
    places = np.stack(
        [masks[visible].sum(axis=1) @ columns / areas, masks[visible].sum(axis=2) @ rows / areas]
    )  # [2, visible]: x and y
    way = np.polyfit(visible, places.T, 1)[0] * (len(masks) - 1)  # [2], pixels over the clip
    along, across = np.abs(way).max(), np.abs(way).min()
    if along < MIN_WAY * masks.shape[1] or along < 2 * across:
        return UNSEEN
    step = tuple(int(s) for s in np.where(np.abs(way) == along, np.sign(way), 0))
    return next(name for name, unit in data.DIRECTIONS.items() if unit == step)


def _shape(masks: np.ndarray) -> str:
    """The shape that at least six in ten of the frames show which hold it whole."""
    shapes = (_shape_of_mask(masks[frame]) for frame in _sizable(masks))
    votes = Counter(shape for shape in shapes if shape is not None)  # None: at the picture's edge
    if votes.total() < len(masks) / 3:
        return UNSEEN
    shape, count = votes.most_common(1)[0]
    return shape if count >= 0.6 * votes.total() else UNSEEN


def _shape_of_mask(mask: np.ndarray) -> str | None:
    """One frame's shape, `UNSEEN`, or None where the shape touches the picture's edge.

    Of its bounding box a square fills all, a circle 0.785, a triangle half. A triangle's upper
    third is a third to a half as wide as its lower third, a circle's and a square's are as wide; a
    funnel is a triangle upside down.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    if top == 0 or left == 0 or bottom == mask.shape[0] or right == mask.shape[1]:
        return None
    height, width = bottom - top, right - left
    if not 0.7 <= width / height <= 1.43:
        return UNSEEN
    box = mask[top:bottom, left:right]
    fill, widths, third = box.mean(), box.sum(axis=1), max(1, height // 3)
    taper = widths[:third].mean() / widths[-third:].mean()
    if 0.42 <= fill <= 0.67 and taper < 0.6:
        return "triangle"
    # wan-tiny's autoencoder, which never saw one, rounds it: 0.57 to 0.8 full, 1.4 to 2.8 as wide.
    if 0.42 <= fill <= 0.82 and taper > 1.45:
        return "funnel"
    if 0.7 <= fill < 0.87 and 0.75 < taper < 1.33:
        return "circle"
    if fill >= 0.89 and 0.8 < taper < 1.25:
        return "square"
    return UNSEEN
