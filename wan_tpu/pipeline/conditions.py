"""What a run makes of its pictures: what is encoded, what the steps begin with and are told.

One class for each way that pictures take; `way_of_pictures` finds the one of a request. Everything
here is NumPy on the host, the same in every process: latents are megabytes where a step is
petaFLOPs, and nothing has to be compiled for them.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32

from wan_tpu.family import Conditioning, ModelKind
from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.latents import Latents, Tokens, to_tokens
from wan_tpu.pipeline.pictures import FIRST, LAST, VIDEO, Pictures, to_floats
from wan_tpu.schedulers.base import Schedule

Video = Float32[np.ndarray, "1 frames height width 3"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NoPictures:
    """Text alone: nothing is encoded, the steps begin with noise and are told nothing else.

    Attributes:
        roles: of the pictures and clips that the request names, of `wan_tpu.media.ROLES`.
    """

    roles: frozenset[str]

    @property
    def in_steps(self) -> Conditioning:
        """How the pictures enter every step."""
        return Conditioning.NONE

    def num_frames(self, geometry: Geometry) -> int:
        """Frames that the autoencoder encodes."""
        return 0

    def video(self, pictures: Pictures, geometry: Geometry) -> Video:
        """What the autoencoder encodes, `num_frames` of it, in [-1, 1].

        Args:
            pictures: of the request, by role.
            geometry: sizes of the video.
        """
        raise AssertionError(f"{type(self).__name__} encodes nothing")

    def start(self, noise: Latents, encoded: Latents | None, schedule: Schedule) -> Latents:
        """The latents that the first step begins with.

        Args:
            noise: of the request's seed.
            encoded: latents of `video`.
            schedule: of the run.
        """
        return schedule.first_latents(noise)

    def tokens(self, encoded: Latents | None, geometry: Geometry) -> Tokens | None:
        """What conditions each step, in token form, in front of the padding."""
        return None

    def finish(self, latents: Latents, encoded: Latents | None) -> Latents:
        """The latents that are decoded, from those after the last step."""
        return latents


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NoisedClip(NoPictures):
    """Video to video: the steps begin with the clip under noise (`WanVideoToVideoPipeline`)."""

    def num_frames(self, geometry: Geometry) -> int:
        """See `NoPictures`."""
        return geometry.num_frames

    def video(self, pictures: Pictures, geometry: Geometry) -> Video:
        """See `NoPictures`."""
        return to_floats(pictures[VIDEO].fitted)[None]

    def start(self, noise: Latents, encoded: Latents | None, schedule: Schedule) -> Latents:
        """See `NoPictures`."""
        assert encoded is not None
        return schedule.add_noise(encoded, noise)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FurtherChannels(NoPictures):
    """Every step sees a mask and an encoded video beside the noise: the pictures in their places,
    grey elsewhere (`WanImageToVideoPipeline`)."""

    @property
    def in_steps(self) -> Conditioning:
        """See `NoPictures`."""
        return Conditioning.CHANNELS

    def num_frames(self, geometry: Geometry) -> int:
        """See `NoPictures`."""
        return geometry.num_frames

    def video(self, pictures: Pictures, geometry: Geometry) -> Video:
        """See `NoPictures`."""
        video = np.zeros((1, geometry.num_frames, geometry.height, geometry.width, 3), np.float32)
        for role, place in ((FIRST, 0), (LAST, -1)):
            if role in self.roles:
                video[:, place] = to_floats(pictures[role].fitted)[0]
        return video

    def tokens(self, encoded: Latents | None, geometry: Geometry) -> Tokens:
        """See `NoPictures`: `[1, tokens, condition channels]`, the mask before the video."""
        assert encoded is not None
        channels = np.concatenate([self.mask(geometry), encoded], axis=-1)
        return to_tokens(channels, geometry)

    def mask(self, geometry: Geometry) -> Latents:
        """1 where a frame is given, a channel for each frame of a latent one, else 0.

        The first latent frame is one frame, which stands for four.
        """
        temporal = geometry.compression.temporal
        frames = np.zeros(geometry.num_frames, np.float32)
        for role, place in ((FIRST, 0), (LAST, -1)):
            if role in self.roles:
                frames[place] = 1
        given = np.concatenate([np.repeat(frames[:1], temporal), frames[1:]])
        given = given.reshape(geometry.latent_frames, temporal)
        shape = (geometry.latent_frames, geometry.latent_height, geometry.latent_width, temporal)
        return np.broadcast_to(given[:, None, None], shape)[None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeptFirstFrame(NoPictures):
    """The picture is the first latent frame at every step and at the end (Wan's TI2V-5B)."""

    @property
    def in_steps(self) -> Conditioning:
        """See `NoPictures`."""
        return Conditioning.FIRST_FRAME

    def num_frames(self, geometry: Geometry) -> int:
        """See `NoPictures`."""
        return 1

    def video(self, pictures: Pictures, geometry: Geometry) -> Video:
        """See `NoPictures`."""
        return to_floats(pictures[FIRST].fitted)[None]

    def tokens(self, encoded: Latents | None, geometry: Geometry) -> Tokens:
        """See `NoPictures`: `[1, tokens of a frame, token channels]`."""
        assert encoded is not None
        return to_tokens(encoded, geometry)

    def finish(self, latents: Latents, encoded: Latents | None) -> Latents:
        """See `NoPictures`: the solver has moved the first frame, too; it is put back."""
        assert encoded is not None
        return np.concatenate([encoded, latents[:, 1:]], axis=1)


def way_of_pictures(kind: ModelKind, roles: frozenset[str]) -> NoPictures:
    """What a run makes of its pictures and clips.

    Args:
        kind: of the model.
        roles: of those that the request names; some of `kind.inputs`.
    """
    if VIDEO in roles:
        return NoisedClip(roles=roles)
    match kind.conditioning:
        case Conditioning.CHANNELS:
            return FurtherChannels(roles=roles)
        case Conditioning.FIRST_FRAME if roles:
            return KeptFirstFrame(roles=roles)
        case _:
            return NoPictures(roles=roles)
