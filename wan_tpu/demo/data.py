"""The worlds that the embedded models know: captioned clips of one shape on a plain background.

A `Scene` is one of 216 captions, a `World` is how large, how far and from where, `make_clip` draws
a scene of a world. The grammar, the palette and the renderer live here because three readers must
agree on them: the training (which draws), the judge (which recognises) and the tests. Only numpy is
imported; this file does not know how a model is trained nor how a video is encoded.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

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
# What wan-tiny can be taught (train_demo.py): no scene of `all_scenes` has them. Its autoencoder
# draws nearly every other colour as one of the palette; this one, between blue and white
# and 106 and 157 from them, comes through. A funnel is a triangle on its tip.
NEW_COLORS: dict[str, tuple[int, int, int]] = {"sky": (115, 185, 255)}
NEW_SHAPES = ("funnel",)
# Unit step (x, y) on the picture, y down.
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}

_PROMPT = re.compile(
    rf"^\s*an?\s+({'|'.join(COLORS | NEW_COLORS)})\s+({'|'.join(SHAPES + NEW_SHAPES)})"
    rf"\s+moving\s+({'|'.join(DIRECTIONS)})"
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
            (self.color, COLORS | NEW_COLORS),
            (self.shape, SHAPES + NEW_SHAPES),
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
class World:
    """The form of the clips, and the ranges of what a caption leaves open. Lengths in pixels.

    Attributes:
        side: width and height of a picture.
        half_size: least and greatest half extent of a shape.
        travel: the shortest and the longest way.
        across: how far the way lies beside the middle of the picture at most, to either side.
        along: how far the way is displaced along itself at most, either way.
        anchor: the moment of the way that `across` and `along` place, 0 its start and 1 its end.
            At 0.5 a shape goes from one side of the picture to the other, and where it starts tells
            where it goes. At 0 it starts anywhere near the middle: the first picture says nothing
            of the direction.
        num_frames: of a clip; 4 k + 1.
        fps: frames a second.
    """

    side: int
    half_size: tuple[float, float]
    travel: tuple[float, float]
    across: float
    along: float
    anchor: float
    num_frames: int = 17
    fps: int = 8


# With 20-32 px of way the direction stayed at chance in the lab; 34-42 px takes the shape from one
# side of the picture to the other. Along the way little displacement keeps the shape inside.
SIDES_WORLD = World(
    side=64, half_size=(11.0, 13.0), travel=(34.0, 42.0), across=4.0, along=1.0, anchor=0.5
)
# The shape is whole in at least half of the frames, and its centre stays in the picture.
MIDDLE_WORLD = World(
    side=128, half_size=(16.0, 20.0), travel=(42.0, 50.0), across=14.0, along=14.0, anchor=0.0
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """What a caption leaves open. Pixels; `across` and `along` displace the middle of the way."""

    half_size: float
    travel: float
    across: float
    along: float


def all_scenes() -> list[Scene]:
    """Every scene, 6 colours x 3 shapes x 4 directions x 3 backgrounds = 216, in a fixed order."""
    return _scenes(COLORS, SHAPES)


def scenes_of_new_color() -> list[Scene]:
    """Every known shape in the new colour: 36."""
    return _scenes(NEW_COLORS, SHAPES)


def scenes_of_new_shape() -> list[Scene]:
    """The new shape in every known colour: 72."""
    return _scenes(COLORS, NEW_SHAPES)


def _scenes(colors: Iterable[str], shapes: Iterable[str]) -> list[Scene]:
    return [
        Scene(color=color, shape=shape, direction=direction, background=background)
        for color, shape, direction, background in itertools.product(
            colors, shapes, DIRECTIONS, BACKGROUNDS
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


def random_pose(rng: np.random.Generator, world: World) -> Pose:
    """A pose drawn uniformly from the ranges of a world."""
    half_size = rng.uniform(*world.half_size)
    travel = rng.uniform(*world.travel)
    across = rng.uniform(-world.across, world.across)
    along = rng.uniform(-world.along, world.along) + (0.5 - world.anchor) * travel
    return Pose(half_size=half_size, travel=travel, across=across, along=along)


def shape_coverage(shape: str, centers, half_size, side: int, xp: Any = np):
    """How much of each pixel a shape covers, antialiased over one pixel.

    Args:
        shape: one of `SHAPES` or `NEW_SHAPES`.
        centers: [..., 2], float32, x and y of the centre in pixels.
        half_size: half the extent in pixels, a number or [...] as `centers`.
        side: width and height of the picture.
        xp: what the arrays are of: numpy, or torch (the training draws on its device).

    Returns:
        [..., side, side], float32 in [0, 1].
    """
    grid = xp.arange(side, dtype=xp.float32) + 0.5
    x = grid[None, :] - centers[..., 0, None, None]
    y = grid[:, None] - centers[..., 1, None, None]
    size = half_size if isinstance(half_size, float) else half_size[..., None, None]
    if shape == "circle":
        distance = xp.sqrt(x**2 + y**2) - size
    elif shape == "square":
        # A little smaller than the circle's diameter, so that the three areas stay comparable.
        distance = xp.maximum(xp.abs(x), xp.abs(y)) - 0.92 * size
    else:
        # A triangle is upright, a funnel the same on its tip. Base and height 2 * size: the slanted
        # sides' unit normal is (2, -1) / sqrt 5.
        down = -y if shape == "funnel" else y
        slant = (2 * xp.abs(x) - (down + size)) / 5**0.5
        distance = xp.maximum(slant, down - size)
    return xp.clip(0.5 - distance, 0.0, 1.0)


def make_centers(scene: Scene, pose: Pose, world: World, times: np.ndarray) -> np.ndarray:
    """Where the shape's centre is at given times of the way, 0 its start and 1 its end.

    Returns:
        [frames, 2], float32, x and y in pixels.
    """
    step = np.array(DIRECTIONS[scene.direction], dtype=np.float64)
    normal = np.abs(step[::-1])
    way = (np.asarray(times, dtype=np.float64) - 0.5) * pose.travel + pose.along
    centers = world.side / 2 + way[:, None] * step + pose.across * normal
    return centers.astype(np.float32)


def make_frames(scene: Scene, pose: Pose, world: World, times: np.ndarray) -> np.ndarray:
    """The pictures of a scene at given times of the way.

    Args:
        scene: what to draw.
        pose: where and how large.
        world: how large a picture.
        times: [frames], 0 at the start of the way and 1 at its end.

    Returns:
        [frames, height, width, 3], float32 in [0, 1].
    """
    centers = make_centers(scene, pose, world, times)
    coverage = shape_coverage(scene.shape, centers, pose.half_size, world.side)[..., None]
    color = np.array((COLORS | NEW_COLORS)[scene.color], dtype=np.float32) / 255
    background = np.array(BACKGROUNDS[scene.background], dtype=np.float32) / 255
    return background + coverage * (color - background)


def clip_times(world: World) -> np.ndarray:
    """The times of a clip's frames, [frames]."""
    return np.linspace(0.0, 1.0, world.num_frames)


def make_clip(scene: Scene, rng: np.random.Generator, world: World) -> np.ndarray:
    """One clip of a scene with a random pose.

    Returns:
        [frames, height, width, 3], float32 in [0, 1].
    """
    return make_frames(scene, random_pose(rng, world), world, clip_times(world))


def make_picture(scene: Scene, rng: np.random.Generator, world: World) -> np.ndarray:
    """The first frame of a scene with a random pose, as a file would hold it.

    Returns:
        [height, width, 3], uint8.
    """
    first = make_frames(scene, random_pose(rng, world), world, np.zeros(1))[0]
    return np.round(first * 255).astype(np.uint8)
