"""The kinds of model in the Wan family: what each is made of and takes, besides its sizes.

The rest of the library asks the kind of a model, never its name: a new member of the family is an
entry here, and a package for what it alone computes. No JAX: a server asks, too.
"""

import dataclasses
import enum
from collections.abc import Set

from wan_tpu.errors import MediaError

TEXT_ENCODER, IMAGE_ENCODER, VAE = "text_encoder", "image_encoder", "vae"
TRANSFORMER, TRANSFORMER_2 = "transformer", "transformer_2"
"""Components with weights, by the names of their folders."""


class Conditioning(enum.Enum):
    """How pictures enter a model's transformer."""

    NONE = "none"
    """Not at all: a picture or clip can only be what the noise is added to."""

    CHANNELS = "channels"
    """As further input channels: a mask and the encoded pictures, grey where there is none."""

    FIRST_FRAME = "first_frame"
    """As the first latent frame, which stays as it is, with a timestep of 0 for its tokens."""


class SizeRule(enum.Enum):
    """How the size of a video follows from a picture's where none is asked for."""

    AREA = "area"
    """The picture's ratio at about the default area (Wan 2.1 and A14B, `image2video.py`)."""

    BEST_OUTPUT_SIZE = "best_output_size"
    """The nearest ratio at no more than the default area (TI2V-5B, `utils/utils.py`)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelKind:
    """What a model of the family is made of and takes.

    Attributes:
        words: what messages call it: `a text-to-video model`.
        inputs: the sets of pictures and clips, of `wan_tpu.media.ROLES`, that a request may name.
        conditioning: how they enter the transformer; a `video` never does, its noised latents are
            what the steps begin with.
        experts: the transformers that take turns, high noise first.
        boundary_ratio: of the noise levels: steps whose timestep is at least 1000 times this are
            the first transformer's; None for one transformer.
        has_image_encoder: whether the pictures go through a CLIP tower, too.
        size_rule: how a size follows from a picture.
    """

    words: str
    inputs: tuple[frozenset[str], ...]
    conditioning: Conditioning = Conditioning.NONE
    experts: tuple[str, ...] = (TRANSFORMER,)
    boundary_ratio: float | None = None
    has_image_encoder: bool = False
    size_rule: SizeRule = SizeRule.AREA

    @property
    def components(self) -> tuple[str, ...]:
        """Folders with weights, in the order that a request runs them."""
        image_encoder = (IMAGE_ENCODER,) if self.has_image_encoder else ()
        return (TEXT_ENCODER, *image_encoder, *self.experts, VAE)

    @property
    def takes(self) -> frozenset[str]:
        """Every role that some request may name."""
        return frozenset().union(*self.inputs)

    def is_like(self, other: "ModelKind") -> bool:
        """Whether kinds are the same but for where their transformers take turns."""
        return dataclasses.replace(self, boundary_ratio=other.boundary_ratio) == other

    def check_inputs(self, given: Set[str], name: str) -> None:
        """Refuses pictures and clips that the model does not take, or the lack of those it needs.

        Args:
            given: roles that a request names.
            name: of the model.

        Raises:
            MediaError: says what it takes.
        """
        if frozenset(given) in self.inputs:
            return
        what = f"{name} is {self.words} and takes {self.described_inputs()}"
        if not given:
            raise MediaError(f"{what}, and none was given")
        raise MediaError(f"{what}, not {_words(given)}")

    def described_inputs(self) -> str:
        """The sets of `inputs` in words: `an image, or an image and a last image`."""
        return ", or ".join(_words(roles) for roles in self.inputs)


def _words(roles: Set[str]) -> str:
    articles = {"image": "an image", "last_image": "a last image", "video": "a video"}
    return " and ".join(text for role, text in articles.items() if role in roles) or "text alone"


_TEXT, _IMAGE, _LAST, _BOTH, _VIDEO = (
    frozenset(roles.split()) for roles in ("", "image", "last_image", "image last_image", "video")
)
_EXPERTS = (TRANSFORMER, TRANSFORMER_2)

TEXT_TO_VIDEO = ModelKind(words="a text-to-video model", inputs=(_TEXT, _VIDEO))
TEXT_TO_VIDEO_A14B = dataclasses.replace(TEXT_TO_VIDEO, experts=_EXPERTS, boundary_ratio=0.875)
IMAGE_TO_VIDEO = ModelKind(
    words="an image-to-video model",
    inputs=(_IMAGE,),
    conditioning=Conditioning.CHANNELS,
    has_image_encoder=True,
)
FIRST_LAST_FRAME_TO_VIDEO = dataclasses.replace(
    IMAGE_TO_VIDEO, words="a first-and-last-frame model", inputs=(_BOTH,)
)
IMAGE_TO_VIDEO_A14B = dataclasses.replace(
    IMAGE_TO_VIDEO,
    inputs=(_IMAGE, _BOTH, _LAST),
    experts=_EXPERTS,
    boundary_ratio=0.9,
    has_image_encoder=False,
)
TEXT_IMAGE_TO_VIDEO = ModelKind(
    words="a text-and-image-to-video model",
    inputs=(_TEXT, _IMAGE, _VIDEO),
    conditioning=Conditioning.FIRST_FRAME,
    size_rule=SizeRule.BEST_OUTPUT_SIZE,
)
