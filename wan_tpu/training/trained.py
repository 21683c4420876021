"""What a run trains: which arrays are its parameters, and the transformer's parameters from them.

Each way is a value with the same few functions; the step asks nothing else. All of it is of one
transformer: a run over two experts has two sets of arrays and one of these.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from wan_tpu.checkpoints.arrays import ZERO
from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.source import Index
from wan_tpu.checkpoints.weights import Weight, load_weights
from wan_tpu.text.embedding_file import Embedding
from wan_tpu.torch_bridge import Params
from wan_tpu.torch_module import LORA_DOWN, LORA_UP
from wan_tpu.training.embedding import CaptionTokens
from wan_tpu.training.placed_batch import PlacedBatch
from wan_tpu.transformer.denoiser import Denoiser

Text = Float[Array, "batch 512 text_dim"]


class Trained(Protocol):
    """What is trained of a denoiser."""

    def weights(self) -> list[Weight]:
        """What is trained, as the optimiser holds it."""
        ...

    def frozen_weights(self) -> list[Weight]:
        """What is only used."""
        ...

    def params(self, frozen: Params, trained: Params, key: PRNGKeyArray) -> Params:
        """All of the transformer's parameters, in the dtypes that it computes in.

        Args:
            frozen: of `frozen_weights`.
            trained: of `weights`.
            key: of what is random in the step.
        """
        ...

    def merged(self, frozen: Params, trained: Params) -> Params:
        """The transformer's parameters as a model without anything beside it has them.

        What is not changed is the array of `frozen` or `trained` itself.

        Args:
            frozen: of `frozen_weights`.
            trained: of `weights`.

        Returns:
            By the transformer's own names, in the dtypes that it computes in, as they lie.
        """
        ...

    def word(self, trained: Params) -> Embedding | None:
        """The vectors of the word that is trained; None where none is."""
        ...

    def text(self, frozen: Params, trained: Params, batch: PlacedBatch) -> Text:
        """The embeddings of the samples' captions."""
        ...

    def tokens(self, captions: Sequence[str]) -> CaptionTokens | None:
        """Captions as `text` takes them; None where it takes the data's embeddings.

        Raises:
            InputError: there are no captions.
        """
        ...

    def check_captions(self, captions: Sequence[str]) -> None:
        """Refuses data of which nothing can be learnt.

        Raises:
            InputError: says what its captions lack.
        """
        ...

    def after_update(self, frozen: Params, trained: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What is trained after an update, brought back to where it has to stay."""
        ...

    def state_name(self, expert: str) -> str:
        """Of several transformers: which state is theirs."""
        ...

    def load_frozen(
        self, description: ModelDescription, experts: Sequence[str], mesh: Mesh
    ) -> Mapping[str, Params]:
        """Reads what is only used, by the transformer's name.

        Args:
            description: of the model.
            experts: names of the transformers that are trained.
            mesh: the devices.

        Raises:
            InputError: what the configuration says does not fit the model.
            CheckpointError: files are missing, damaged or not those of the model.
        """
        ...

    def begin(
        self,
        description: ModelDescription,
        experts: Sequence[str],
        mesh: Mesh,
        seed: int,
        frozen: Mapping[str, Params],
    ) -> Mapping[str, Params]:
        """What is trained as it is before the first step, by the state's name.

        Args:
            description: of the model.
            experts: names of the transformers that are trained.
            mesh: the devices.
            seed: of what begins at random.
            frozen: of `load_frozen`.

        Raises:
            CheckpointError: files are missing, damaged or not those of the model.
        """
        ...


def load_each(
    experts: Sequence[str], weights: list[Weight], description: ModelDescription, mesh: Mesh
) -> dict[str, dict[str, jax.Array]]:
    """The same weights of each of some transformers, from the model's files.

    Raises:
        CheckpointError: files are missing, damaged or not those of the model.
    """
    return {
        expert: load_weights(expert, weights, description.source(expert), mesh)
        for expert in experts
    }


class OfTransformer:
    """What the ways to train a transformer itself share: its text is the data's."""

    __slots__ = ()

    def text(self, frozen: Params, trained: Params, batch: PlacedBatch) -> Text:
        """See `Trained`."""
        return batch.text

    def tokens(self, captions: Sequence[str]) -> None:
        """See `Trained`."""
        return

    def word(self, trained: Params) -> None:
        """See `Trained`."""
        return

    def check_captions(self, captions: Sequence[str]) -> None:
        """See `Trained`: any will do."""

    def after_update(self, frozen: Params, trained: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """See `Trained`: nothing has to stay anywhere."""
        return trained

    def state_name(self, expert: str) -> str:
        """See `Trained`: each has its own."""
        return expert


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AllWeights(OfTransformer):
    """Every parameter of the transformer.

    Attributes:
        denoiser: whose.
        master: dtype that the optimiser holds them in.
    """

    denoiser: Denoiser
    master: str

    def weights(self) -> list[Weight]:
        """See `Trained`; small ones that the model keeps in float32 are float32 here, too."""
        return [
            dataclasses.replace(weight, dtype=jnp.promote_types(weight.dtype, self.master))
            for weight in self.denoiser.weights()
        ]

    def frozen_weights(self) -> list[Weight]:
        """See `Trained`: none."""
        return []

    def params(self, frozen: Params, trained: Params, key: PRNGKeyArray) -> Params:
        """See `Trained`: there is nothing random in them."""
        return self.merged(frozen, trained)

    def merged(self, frozen: Params, trained: Params) -> Params:
        """See `Trained`: cast."""
        dtypes = {weight.name: weight.dtype for weight in self.denoiser.weights()}
        return {
            name: array if array.dtype == dtypes[name] else array.astype(dtypes[name])
            for name, array in trained.items()
        }

    def load_frozen(
        self, description: ModelDescription, experts: Sequence[str], mesh: Mesh
    ) -> Mapping[str, Params]:
        """See `Trained`."""
        return {expert: {} for expert in experts}

    def begin(
        self,
        description: ModelDescription,
        experts: Sequence[str],
        mesh: Mesh,
        seed: int,
        frozen: Mapping[str, Params],
    ) -> Mapping[str, Params]:
        """See `Trained`: the model's own weights."""
        return load_each(experts, self.weights(), description, mesh)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LowRank(OfTransformer):
    """Matrices of low rank beside the transformer's linears, which stay as they are.

    Attributes:
        denoiser: whose; its `lora` says where they are.
        scale: of what they add.
        dropout: share of each A's inputs that a step leaves out, the same for its whole batch.
    """

    denoiser: Denoiser
    scale: float
    dropout: float = 0.0

    def weights(self) -> list[Weight]:
        """See `Trained`."""
        return self.denoiser.lora_weights()

    def frozen_weights(self) -> list[Weight]:
        """See `Trained`."""
        return self.denoiser.weights()

    def params(self, frozen: Params, trained: Params, key: PRNGKeyArray) -> Params:
        """See `Trained`."""
        dtype, params = self.denoiser.dtype, dict(frozen)
        for number, weight in enumerate(self.weights()):
            array = trained[weight.name]
            if weight.name.endswith(LORA_UP):
                array = array * self.scale
            elif self.dropout:
                array = array * self._kept(weight, jax.random.fold_in(key, number))
            params[weight.name] = array.astype(dtype)
        return params

    def merged(self, frozen: Params, trained: Params) -> Params:
        """See `Trained`: W + scale B A, added in float32; one layer at a time is held so."""
        params = dict(frozen)
        for weight in self.weights():
            if weight.name.endswith(LORA_UP):
                stem = weight.name.removesuffix(LORA_UP)
                base, up, down = frozen[f"{stem}weight"], trained[weight.name], f"{stem}{LORA_DOWN}"
                add = jax.jit(_with_factors, out_shardings=base.sharding)
                params[f"{stem}weight"] = add(base, up, trained[down], np.float32(self.scale))
        return params

    def _kept(self, weight: Weight, key: PRNGKeyArray) -> Float[Array, "layers 1 in_features"]:
        """0 for the inputs that are left out, for the others what makes up for them.

        Drawn for the columns that a file has, so that no padding moves the draws.
        """
        shape = (weight.shape[0], 1, weight.tensor_shape[1])
        kept = jax.random.bernoulli(key, 1 - self.dropout, shape) / (1 - self.dropout)
        if 1 not in weight.rows:
            return kept
        rows = weight.rows[1]
        return jnp.where(rows == ZERO, 0, kept[..., np.where(rows == ZERO, 0, rows)])

    def load_frozen(
        self, description: ModelDescription, experts: Sequence[str], mesh: Mesh
    ) -> Mapping[str, Params]:
        """See `Trained`."""
        return load_each(experts, self.frozen_weights(), description, mesh)

    def begin(
        self,
        description: ModelDescription,
        experts: Sequence[str],
        mesh: Mesh,
        seed: int,
        frozen: Mapping[str, Params],
    ) -> Mapping[str, Params]:
        """See `Trained`: A at random, B zero."""
        fresh = FreshFactors(self.weights(), seed)
        return {expert: load_weights(expert, self.weights(), fresh, mesh) for expert in experts}


def _with_factors(
    base: Float[Array, "layers out in"],
    up: Float[Array, "layers out rank"],
    down: Float[Array, "layers rank in"],
    scale: Float[Array, ""],
) -> Float[Array, "layers out in"]:
    """W + scale B A of every layer, in the dtype of W."""

    def of_layer(layer: tuple[Array, Array, Array]) -> Array:
        base, up, down = layer
        with jax.default_matmul_precision("highest"):
            return (base.astype(jnp.float32) + scale * (up @ down)).astype(base.dtype)

    return jax.lax.map(of_layer, (base, up, down))


class FreshFactors:
    """A source of the matrices that a LoRA begins with: A at random, B zero, so that nothing is
    added. Drawn by name, the same on every layout and in every process.

    A is uniform within 1 / sqrt(inputs), as peft draws it (He et al. 2015 with a = sqrt 5).
    """

    description = "fresh LoRA matrices"

    def __init__(self, weights: list[Weight], seed: int):
        """Draws nothing yet; `weights` are those of a LoRA."""
        self._drawn = {t: w.name.endswith(LORA_DOWN) for w in weights for t in w.tensors}
        self._seed = seed
        self.shapes: Mapping[str, tuple[int, ...]] = {
            tensor: weight.tensor_shape for weight in weights for tensor in weight.tensors
        }
        self.dtypes: Mapping[str, str] = dict.fromkeys(self.shapes, "F32")

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """See `TensorSource.read`."""
        shape = self.shapes[name]
        if not self._drawn[name]:
            return np.zeros(shape, np.float32)[index]
        generator = np.random.default_rng([self._seed, *name.encode()])
        bound = shape[1] ** -0.5
        return generator.uniform(-bound, bound, shape).astype(np.float32)[index]
