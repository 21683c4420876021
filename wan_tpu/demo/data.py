"""The world that wan-tiny knows: captioned clips of one shape that crosses a plain background.

A `Scene` is one of 216 captions, `make_clip` draws it. The grammar, the palette and the renderer
live here because three readers must agree on them: the training (which draws), the judge (which
recognises) and the tests. Only numpy is imported; this file does not know how a model is trained
nor how a video is encoded.
"""

import dataclasses
import itertools
import re

import numpy as np

CLIP_SIZE = 64  # pixels, width and height
CLIP_FRAMES = 17  # 4 * 4 + 1: five latent frames
CLIP_FPS = 8

# Saturated, and at least 140 apart (Euclidean, of 441) from each other and from every background.
# In the lab every miss of direction was green on gray, which that autoencoder did not see.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (235, 30, 30),
    "green": (0, 220, 60),
    "blue": (40, 110, 255),
    "yellow": (250, 220, 20),
    "white": (255, 255, 255),
    "purple": (200, 30, 220),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "gray": (112, 112, 112),
    "navy": (0, 0, 110),
}
SHAPES = ("circle", "square", "triangle")
# Unit step (x, y) on the picture, y down.
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}

# Half the extent of a shape and the way it goes, in pixels. With 20-32 px the direction stayed
# at chance in the lab; 34-42 px takes the shape from one side of the picture to the other.
SIZE_RANGE = (11.0, 13.0)
TRAVEL_RANGE = (34.0, 42.0)
CENTER_JITTER = 4.0  # across the way; along it a quarter of that, which keeps the shape inside

_PROMPT = re.compile(
    rf"^\s*an?\s+({'|'.join(COLORS)})\s+({'|'.join(SHAPES)})\s+moving\s+({'|'.join(DIRECTIONS)})"
    rf"\s+on\s+an?\s+({'|'.join(BACKGROUNDS)})\s+background\s*\.?\s*$",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What one caption says: four words, each from its own list."""

    color: str
    shape: str
    direction: str
    background: str

    def __post_init__(self) -> None:
        for word, known in (
            (self.color, COLORS),
            (self.shape, SHAPES),
            (self.direction, DIRECTIONS),
            (self.background, BACKGROUNDS),
        ):
            if word not in known:
                raise ValueError(f"{word!r} is not one of {', '.join(known)}")

    @property
    def prompt(self) -> str:
        """The caption, word for word as the training saw it."""
        return (
            f"a {self.color} {self.shape} moving {self.direction} on a {self.background} background"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """What a caption leaves open. Pixels; `across` and `along` displace the middle of the way."""

    size: float
    travel: float
    across: float
    along: float


def all_scenes() -> list[Scene]:
    """Every scene, 6 colours x 3 shapes x 4 directions x 3 backgrounds = 216, in a fixed order."""
    return [
        Scene(color=color, shape=shape, direction=direction, background=background)
        for color, shape, direction, background in itertools.product(
            COLORS, SHAPES, DIRECTIONS, BACKGROUNDS
        )
    ]


def parse_prompt(prompt: str) -> Scene:
    """The scene that a caption of the grammar names.

    Raises:
        ValueError: the prompt is outside the grammar.
    """
    match = _PROMPT.match(prompt)
    if match is None:
        raise ValueError(
            f"{prompt!r} is not 'a COLOR SHAPE moving DIRECTION on a BACKGROUND background'"
        )
    color, shape, direction, background = (word.lower() for word in match.groups())
    return Scene(color=color, shape=shape, direction=direction, background=background)


def random_pose(rng: np.random.Generator) -> Pose:
    """A pose drawn uniformly from the ranges above."""
    return Pose(
        size=rng.uniform(*SIZE_RANGE),
        travel=rng.uniform(*TRAVEL_RANGE),
        across=rng.uniform(-CENTER_JITTER, CENTER_JITTER),
        along=rng.uniform(-CENTER_JITTER, CENTER_JITTER) / 4,
    )


def shape_coverage(shape: str, centers: np.ndarray, size: float) -> np.ndarray:
    """How much of each pixel a shape covers, antialiased over one pixel.

    Args:
        shape: one of `SHAPES`.
        centers: [frames, 2], x and y of the centre in pixels.
        size: half the extent in pixels.

    Returns:
        [frames, height, width], float32 in [0, 1].
    """
    grid = np.arange(CLIP_SIZE, dtype=np.float32) + 0.5
    x = grid[None, None, :] - centers[:, 0, None, None].astype(np.float32)
    y = grid[None, :, None] - centers[:, 1, None, None].astype(np.float32)
    if shape == "circle":
        distance = np.sqrt(x**2 + y**2) - size
    elif shape == "square":
        # A little smaller than the circle's diameter, so that the three areas stay comparable.
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.92 * size
    else:
        # Upright, base and height 2 * size: the slanted sides' unit normal is (2, -1) / sqrt 5.
        slant = (2 * np.abs(x) - (y + size)) / np.sqrt(5)
        distance = np.maximum(slant, y - size)
    return np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


def make_frames(scene: Scene, pose: Pose, times: np.ndarray) -> np.ndarray:
    """The pictures of a scene at given times of the way.

    Args:
        scene: what to draw.
        pose: where and how large.
        times: [frames], 0 at the start of the way and 1 at its end.

    Returns:
        [frames, height, width, 3], float32 in [0, 1].
    """
    step = np.array(DIRECTIONS[scene.direction], dtype=np.float64)
    normal = np.abs(step[::-1])
    way = (np.asarray(times, dtype=np.float64) - 0.5) * pose.travel + pose.along
    centers = CLIP_SIZE / 2 + way[:, None] * step + pose.across * normal  # [frames, 2]
    coverage = shape_coverage(scene.shape, centers, pose.size)[..., None]
    color = np.array(COLORS[scene.color], dtype=np.float32) / 255
    background = np.array(BACKGROUNDS[scene.background], dtype=np.float32) / 255
    return background + coverage * (color - background)


def make_clip(scene: Scene, rng: np.random.Generator, num_frames: int = CLIP_FRAMES) -> np.ndarray:
    """One clip of a scene with a random pose.

    Returns:
        [num_frames, height, width, 3], float32 in [0, 1].
    """
    return make_frames(scene, random_pose(rng), np.linspace(0.0, 1.0, num_frames))
