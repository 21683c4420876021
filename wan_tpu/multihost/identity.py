"""What must be the same in every process of a slice, as digests, and how two of them differ."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

Identity = Mapping[str, Mapping[str, str]]
"""By part, then by name: the value, or its digest where that is long."""

PACKAGES = (
    "torch", "torchax", "jax", "jaxlib", "libtpu", "flax", "numpy", "ml_dtypes",
    "diffusers", "transformers", "tokenizers", "safetensors",
)  # fmt: skip
"""Those that decide which programs run, and what is in them."""

ENVIRONMENT = (
    "XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "JAX_ENABLE_X64",
    "JAX_DEFAULT_MATMUL_PRECISION",
)  # fmt: skip
"""Variables that change programs."""

WHOLE_FILE_BYTES = 1 << 22
SAMPLES, SAMPLE_BYTES = 64, 1 << 16
"""Of larger files so many parts are read, 4 MiB in all: reading all of a 14B takes minutes."""

MAX_DIFFERENCES = 6
"""Named in one message."""


def make_identity(
    *, model_paths: Sequence[pathlib.Path], settings: Mapping[str, Any], packages: Sequence[str]
) -> Identity:
    """What this process is.

    Args:
        model_paths: the folders and files that the model is read from.
        settings: whatever else decides what runs.
        packages: our own, whose code must be the same.
    """
    return {
        "versions": {"python": platform.python_version()[:4], **_versions()},
        "code": {name: _digest_of_code(name) for name in packages},
        "settings": {name: _shown(value) for name, value in settings.items()},
        "environment": {name: os.environ.get(name, "") for name in ENVIRONMENT},
        "model files": digest_files(model_paths),
    }


def differences(ours: Identity, theirs: Identity, name: str) -> list[str]:
    """Sentences on what differs between process 0 and another; empty if nothing does.

    Args:
        ours: of process 0.
        theirs: of the other.
        name: what the other is called.
    """
    found = []
    for part in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(part, {}), theirs.get(part, {})
        for key in sorted(mine.keys() | other.keys()):
            here, there = mine.get(key, "absent"), other.get(key, "absent")
            if here != there:
                found.append(f"{part}: {key} is {here} on process 0 and {there} on {name}")
    more = len(found) - MAX_DIFFERENCES
    return found[:MAX_DIFFERENCES] + ([f"and {more} more"] if more > 0 else [])


def digest_files(paths: Sequence[pathlib.Path]) -> dict[str, str]:
    """Size and digest of every file that a model is read from; of large ones, samples.

    Args:
        paths: folders, of which those files count that a model is read from, and files.

    Returns:
        By the name within its folder, whatever the folder is called; a file by its own name.
    """
    digests = {}
    for root in paths:
        files = [root] if root.is_file() else sorted(filter(_is_of_model, root.rglob("*")))
        for path in files:
            name = root.name if path == root else path.relative_to(root).as_posix()
            digests[name] = " and ".join(
                [*filter(None, [digests.get(name)]), _digest_of_file(path)]
            )
    return digests


def _is_of_model(path: pathlib.Path) -> bool:
    return path.suffix in (".json", ".safetensors", ".model") and path.is_file()


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def _digest_of_code(package: str) -> str:
    """Of every Python file of a package: two commits may have one version."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    root = pathlib.Path(spec.origin).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _digest_of_file(path: pathlib.Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= WHOLE_FILE_BYTES:
            digest.update(file.read())
        else:
            for index in range(SAMPLES):  # the first has the header, the last the end
                file.seek((size - SAMPLE_BYTES) * index // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return f"{digest.hexdigest()[:12]} ({size} bytes)"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
