"""What a model is loaded with, as a user names it, and the one way from there to a pipeline.

The command line and the service read the same names into `LoadOptions`, and then

    model = options.open_model()                  # its files are here
    request, _ = check_request(model, request, media)  # complete, and the model can make it
    runtime.start(host_devices=options.host_devices, ...)
    pipeline = options.load(model, compile_for=request)

All but the last two lines do without JAX.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wan_tpu.adapters.choice import AdapterChoice
from wan_tpu.attention.choice import parse_attention
from wan_tpu.checkpoints.models import WAN_TINY, ModelDescription, describe_model, open_model
from wan_tpu.errors import LayoutError, UnknownNameError
from wan_tpu.pipeline.names import DTYPES, QUANTIZE, VAES
from wan_tpu.pipeline.step_cache import with_curve
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import (
    SEQUENCE_PARALLEL,
    WEIGHTS,
    Layout,
    parse_layout,
)
from wan_tpu.step_cache import read_curve
from wan_tpu.text.embedding_file import Embedding, read_embedding
from wan_tpu.text.new_words import NewWords, check_widths
from wan_tpu.transformer.config import TransformerConfig

if TYPE_CHECKING:
    from wan_tpu.adapters.chosen import ChosenAdapter
    from wan_tpu.pipeline.video_pipeline import VideoPipeline


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a model is loaded with.

    Attributes:
        model: `wan-tiny`, a folder in diffusers format, a hub id or a known model's name.
        variant: of the weights' files, as diffusers takes it, for example `fp16`; None for those
            without one.
        layout: how the model is split; None to choose it for the number of devices.
        sequence_parallel: of the layout that is chosen; None leaves it to the choice. A layout that
            is given has its own.
        weights: likewise.
        attention: one of `wan_tpu.attention.names.IMPLEMENTATIONS`; of `flash-int8` with what stays
            exact, where it is said (`wan_tpu.attention.choice`).
        vae: one of `wan_tpu.pipeline.names.VAES`.
        vae_dtype: of the autoencoder, one of `names.DTYPES`; None for that of the rest.
        dtype: of weights and activations, one of `names.DTYPES`; None for bfloat16, on a CPU
            float32.
        quantize: what weights and products of the transformers' blocks are, one of
            `names.QUANTIZE`; None for `dtype`.
        host_devices: so many virtual CPU devices, and no accelerator; None for those that are here.
        embeddings: files of words that prompts may hold, each `FILE` or `FILE:WORD`; see
            `wan_tpu.text.embedding_file.read_embedding`.
        adapters: added to the transformers' weights, in this order.
        adapter_folder: of those that requests may name (`wan_tpu.adapters.library`); each process
            has its own copy of it.
        ratios: a file of `wan-tpu calibrate`, that MagCache goes by; None for a published curve.

    Raises:
        InputError: a name that does not exist, or what is no number of steps or layers.
    """

    model: str = WAN_TINY
    variant: str | None = None
    layout: Layout | None = None
    sequence_parallel: str | None = None
    weights: str | None = None
    attention: str = "auto"
    vae: str = "flax"
    vae_dtype: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    host_devices: int | None = None
    embeddings: tuple[str, ...] = ()
    adapters: tuple[AdapterChoice, ...] = ()
    adapter_folder: pathlib.Path | None = None
    ratios: pathlib.Path | None = None

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("sequence-parallel", self.sequence_parallel, SEQUENCE_PARALLEL),
            ("weights", self.weights, WEIGHTS),
            ("VAE", self.vae, VAES),
            ("VAE dtype", self.vae_dtype, DTYPES),
            ("dtype", self.dtype, DTYPES),
            ("quantization", self.quantize, QUANTIZE),
        ):
            if name is not None and name not in known:
                raise UnknownNameError(kind, name, known)
        parse_attention(self.attention)

    @classmethod
    def from_text(
        cls,
        *,
        layout: str | None = None,
        sequence_parallel: str | None = None,
        weights: str | None = None,
        **others: Any,
    ) -> "LoadOptions":
        """The same, with the layout as text.

        Args:
            layout: for example `dp2-sp4`; None to choose one.
            sequence_parallel: of the layout, given or chosen.
            weights: likewise.
            **others: as in the class.

        Raises:
            InputError: the text is no layout, or does not say what the others say, or a name
                does not exist.
        """
        if layout is None:
            return cls(sequence_parallel=sequence_parallel, weights=weights, **others)
        wanted = _without_none(sequence_parallel=sequence_parallel, weights=weights)
        parsed = parse_layout(layout, **wanted)
        if dataclasses.replace(parsed, **wanted) != parsed:
            raise LayoutError(
                f"layout {layout!r} is not {' and '.join(wanted.values())}, which was said, too; "
                "give one of them"
            )
        return cls(layout=parsed, **others)

    def describe_model(self) -> ModelDescription:
        """The model's configurations; weights are neither read nor downloaded.

        Raises:
            UnknownNameError: nothing is called so.
            InputError: the file of ratios is none, or of another transformer.
            CheckpointError: its files are not those of a model of the family.
        """
        return with_curve(describe_model(self.model, self.variant), self.ratios)

    def open_model(self) -> ModelDescription:
        """The model with all its files here, downloaded from the hub if they were not.

        Raises:
            UnknownNameError: nothing is called so.
            InputError: as of `describe_model`.
            CheckpointError: files are missing, cannot be had, or are of another kind of model.
        """
        return with_curve(open_model(self.model, self.variant), self.ratios)

    def with_adapters(self, paths: Sequence[str]) -> "LoadOptions":
        """The same with further adapters in front, at strength 1."""
        first = tuple(AdapterChoice(path=path) for path in paths)
        return dataclasses.replace(self, adapters=(*first, *self.adapters))

    def open_adapters(self) -> "tuple[ChosenAdapter, ...]":
        """The files of the adapters, read; downloaded from the hub if they were not here.

        Raises:
            InputError: nothing is called so.
            CheckpointError: a file is damaged, or no adapter of a Wan transformer.
        """
        if not self.adapters:
            return ()
        from wan_tpu.adapters.chosen import open_adapters

        return open_adapters(self.adapters)

    def load(
        self,
        model: ModelDescription,
        *,
        adapters: "Sequence[ChosenAdapter] | None" = None,
        devices: Sequence[Any] | None = None,
        compile_for: VideoRequest | None = None,
    ) -> "VideoPipeline":
        """Loads a model onto devices; JAX has been started.

        Args:
            model: what `open_model` gave.
            adapters: what `open_adapters` gave; opened here when not given.
            devices: those to use; all of all processes when not given.
            compile_for: a request whose programs are compiled while the weights load; a layout that
                is chosen suits its guidance.

        Raises:
            LayoutError: the layout does not fit the devices.
            InputError: an adapter is for an expert that the model does not have.
            CheckpointError: files are missing, damaged or not those of the model.
            MissingPackageError: the VAE's package is not installed.
            OutOfMemoryError: the weights do not fit.
        """
        import jax

        from wan_tpu.pipeline.load import choose_layout
        from wan_tpu.pipeline.run import largest_batch
        from wan_tpu.pipeline.video_pipeline import VideoPipeline

        devices = jax.devices() if devices is None else devices
        batch = 2 if compile_for is None else largest_batch(model, compile_for)
        suiting = self.layout or choose_layout(
            model, devices, self.dtype, batch=batch, quantize=self.quantize
        )
        return VideoPipeline.load(
            model,
            layout=self.layout_for(len(devices), suiting),
            devices=devices,
            dtype=self.dtype,
            attention=self.attention,
            vae=self.vae,
            vae_dtype=self.vae_dtype,
            quantize=self.quantize,
            embeddings=self.open_embeddings(model),
            adapters=self.open_adapters() if adapters is None else adapters,
            adapter_folder=self.adapter_folder,
            compile_for=compile_for,
        )

    def open_embeddings(self, model: ModelDescription) -> tuple[Embedding, ...]:
        """The files of `embeddings`, read and checked against a model.

        Raises:
            InputError: one is missing, of another model, or its numbers or word will not do; or
                two are of one word.
            CheckpointError: one is damaged.
        """
        found = tuple(read_embedding(argument) for argument in self.embeddings)
        transformer = TransformerConfig.from_json(model.configs[model.kind.experts[0]])
        check_widths(found, transformer.text_dim, model.name)
        NewWords(found)  # says which two are of one word
        return found

    def layout_for(self, num_devices: int, chosen: Layout) -> Layout:
        """The layout that is given, or the chosen one with the choices that are given.

        Args:
            num_devices: that the model is split over.
            chosen: what suits the model and the devices.

        Raises:
            LayoutError: the given one needs another number of devices.
        """
        if self.layout is not None:
            self.layout.require_devices(num_devices)
            return self.layout
        wanted = _without_none(sequence_parallel=self.sequence_parallel, weights=self.weights)
        return dataclasses.replace(chosen, **wanted)

    def identity(self) -> dict[str, Any]:
        """What must be the same in all processes that share the model: everything, JSON-ready."""
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        embeddings = [read_embedding(argument) for argument in self.embeddings]
        return {
            **shown,
            "layout": None if self.layout is None else str(self.layout),
            "embeddings": [f"{each.word} {each.digest}" for each in embeddings],
            "adapters": [dataclasses.asdict(adapter) for adapter in self.adapters],
            "adapter_folder": self.adapter_folder is not None,  # where it lies is each one's own
            "ratios": None if self.ratios is None else read_curve(self.ratios).to_json(),
        }


def _without_none(**names: str | None) -> dict[str, str]:
    return {key: name for key, name in names.items() if name is not None}


def listed(names: Sequence[str]) -> str:
    """Names as a help text lists them: `auto, splash or flash`."""
    return f"{', '.join(names[:-1])} or {names[-1]}"
