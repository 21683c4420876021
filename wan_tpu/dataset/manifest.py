"""`dataset.json`: what was prepared, of what, for which model, and what was refused and why."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.dataset.claims import FILE as CLAIMS_FILE
from wan_tpu.dataset.digests import Digests, digest_of_json, encoder_digests
from wan_tpu.errors import InputError
from wan_tpu.family import Conditioning
from wan_tpu.geometry import Compression, Geometry
from wan_tpu.pipeline.check import compression_of
from wan_tpu.pipeline.whole_file import write_json_atomically

FILE = "dataset.json"
WRITTEN_BY = "wan-tpu dataset prepare"
FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One sample.

    Attributes:
        name: of the clip, below the folder or file that was listed, and where the sample begins.
        caption: cleaned.
        sample: key of its latents.
        text: key of the caption's embeddings.
        size: width, height and frames.
    """

    name: str
    caption: str
    sample: str
    text: str
    size: tuple[int, int, int]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A clip, or a part of one, that no sample was made of.

    Attributes:
        name: of it.
        kind: of `wan_tpu.dataset.faults.FAULTS`.
        reason: in words.
    """

    name: str
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Contents of `dataset.json`.

    Attributes:
        model: name of the one whose encoders were taken.
        encoders: digests of those, by component.
        inputs: frames that the model is given as channels, of `wan_tpu.media.ROLES`.
        compression: of the model.
        source: what was listed.
        settings: how clips were sampled, and the dtypes; for people.
        empty_text: key of the empty caption's embeddings.
        samples: in the order of the list.
        refused: in the order of their names.
    """

    model: str
    encoders: Mapping[str, str]
    inputs: tuple[str, ...]
    compression: Compression
    source: str
    settings: Mapping[str, Any]
    empty_text: str
    samples: tuple[Prepared, ...]
    refused: tuple[Refusal, ...] = ()

    @property
    def digest(self) -> str:
        """Of all that a training sees: other samples, captions, names or order, another digest."""
        samples = [[s.name, s.sample, s.text, *s.size] for s in self.samples]
        return f"sha256:{digest_of_json([FORMAT, self.empty_text, samples])}"

    def geometry(self, size: Sequence[int]) -> Geometry:
        """The sizes of samples of this width, height and number of frames."""
        width, height, num_frames = size
        return Geometry(
            width=width, height=height, num_frames=num_frames, compression=self.compression
        )

    def counts(self) -> dict[tuple[int, int, int], int]:
        """Samples by size, the most frequent first."""
        counts: dict[tuple[int, int, int], int] = {}
        for sample in self.samples:
            counts[sample.size] = counts.get(sample.size, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
    """Writes `dataset.json`, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    data = dataclasses.asdict(manifest)
    write_json_atomically(
        folder / FILE,
        {"written_by": WRITTEN_BY, "format": FORMAT, "digest": manifest.digest, **data},
    )


def is_prepared(path: pathlib.Path) -> bool:
    """Whether a folder was made by `prepare`, and to its end.

    Raises:
        InputError: it was begun and never ended.
    """
    if (path / FILE).is_file():
        return True
    if (path / CLAIMS_FILE).is_file():
        raise InputError(
            f"{path} was not prepared to its end; the same wan-tpu dataset prepare goes on there"
        )
    return False


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Reads `dataset.json`.

    Raises:
        InputError: it is not there, or not one that this version wrote.
    """
    path = folder / FILE
    if not is_prepared(folder):
        raise InputError(f"{folder} has no {FILE}; wan-tpu dataset prepare makes such a folder")
    try:
        data = json.loads(path.read_text("utf-8"))
        if data.pop("written_by") != WRITTEN_BY or data.pop("format") != FORMAT:
            raise ValueError("written by another program or version")
        del data["digest"]
        made = data["compression"]
        data |= {
            "inputs": tuple(data["inputs"]),
            "compression": Compression(**(made | {"patch": tuple(made["patch"])})),
            "samples": tuple(Prepared(**{**s, "size": tuple(s["size"])}) for s in data["samples"]),
            "refused": tuple(Refusal(**refusal) for refusal in data["refused"]),
        }
        return Manifest(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path} cannot be used ({reason}); wan-tpu dataset prepare writes it anew"
        ) from None


def check_model(manifest: Manifest, description: ModelDescription, folder: pathlib.Path) -> None:
    """Refuses data that another model's encoders made.

    Args:
        manifest: of the data.
        description: of the model that is to learn from it, from `open_model`.
        folder: of the data.

    Raises:
        InputError: says what differs, and how it is made for this model.
        CheckpointError: files of the model are missing.
    """
    check_form(manifest, description, folder)
    for name, digest in encoder_digests(description, Digests(folder)).items():
        if manifest.encoders.get(name) != digest:
            raise InputError(
                f"{folder} was prepared with the {name.replace('_', ' ')} of {manifest.model}, "
                f"which is not that of {description.name}; make it anew: "
                f"{_again(manifest, description)}"
            )


def check_form(manifest: Manifest, description: ModelDescription, folder: pathlib.Path) -> None:
    """Refuses data of other sizes, or with other inputs; the model's files are not needed.

    Args:
        manifest: of the data.
        description: of the model that is to learn from it.
        folder: of the data.

    Raises:
        InputError: says what differs, and how it is made for this model.
    """
    again = _again(manifest, description)
    if compression_of(description) != manifest.compression:
        raise InputError(
            f"{folder} was prepared for {manifest.model}, whose latents are of other sizes than "
            f"those of {description.name}; make it anew: {again}"
        )
    by_channels = description.kind.conditioning is Conditioning.CHANNELS
    expected = [tuple(sorted(r)) for r in description.kind.inputs] if by_channels else [()]
    if tuple(sorted(manifest.inputs)) not in expected:
        what = " and ".join(manifest.inputs) or "no pictures"
        raise InputError(
            f"{folder} was prepared with {what} as inputs; {description.name} is "
            f"{description.kind.words} and needs {_listed(expected)}; make it anew: {again}"
        )


def _again(manifest: Manifest, description: ModelDescription) -> str:
    return f"wan-tpu dataset prepare {manifest.source} -o ... --model {description.name}"


def _listed(inputs: Sequence[tuple[str, ...]]) -> str:
    return " or ".join("+".join(each) or "none" for each in inputs)
