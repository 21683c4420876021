"""A source around a source whose tensors have other names."""

from collections.abc import Mapping

import numpy as np

from wan_tpu.checkpoints.source import Index, TensorSource


class RenamedSource:
    """Some or all tensors of a source, under other names."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]):
        """Reads nothing.

        Args:
            source: where the tensors are.
            names: by the name here, the name there; the others are left out.
        """
        self._source = source
        self._names = names
        self.description = source.description
        self.shapes: Mapping[str, tuple[int, ...]] = {
            here: source.shapes[there] for here, there in names.items()
        }
        self.dtypes: Mapping[str, str] = {
            here: source.dtypes[there] for here, there in names.items()
        }

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """See `TensorSource.read`."""
        return self._source.read(self._names[name], index)
