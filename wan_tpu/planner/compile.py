"""Compiles stages for a slice that is not there, with the real TPU compiler, and keeps the facts.

No weights and no TPU: libtpu alone compiles. What is kept of a program is `StageFacts`, a JSON file
in the user's cache folder under a key of everything that decides the program, so that the second
plan of the same thing compiles and even traces nothing.
"""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import wan_tpu
from wan_tpu.errors import MissingPackageError
from wan_tpu.planner.hardware import Slice
from wan_tpu.planner.links import Coordinates
from wan_tpu.planner.program import ProgramCosts, read_program
from wan_tpu.stage import Stage

logger = logging.getLogger(__name__)

PACKAGES = ("libtpu", "jax", "jaxlib", "torch", "torchax", "diffusers", "transformers", "flax")
"""Distributions that decide a program."""

FORMAT = 3
"""Of the kept JSON; raise it when what is kept changes its form."""

COMPILE_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to ask on an ordinary machine
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compile-only processes may share libtpu
}

_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageFacts:
    """What the compiler says about one stage; bytes are per device.

    Attributes:
        name: of the stage.
        argument_bytes: weights and whatever else it takes.
        output_bytes: what it returns, donated arguments included.
        temporary_bytes: its own working memory.
        peak_bytes: most bytes at once, arguments included.
        coordinates: the chip of each device, in the order in which the program numbers them.
        costs: every operation; None when it did not compile.
        compile_seconds: how long lowering and compiling took.
        failure: the compiler's own words when the program does not fit; else empty.
    """

    name: str
    argument_bytes: int = 0
    output_bytes: int = 0
    temporary_bytes: int = 0
    peak_bytes: int = 0
    coordinates: Coordinates = ()
    costs: ProgramCosts | None = None
    compile_seconds: float = 0.0
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        """The facts as a JSON object, without the costs: these are read from the program's text."""
        names = (field.name for field in dataclasses.fields(self))
        return {name: getattr(self, name) for name in names if name != "costs"}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "StageFacts":
        """The facts that `to_json` wrote."""
        fields: dict[str, Any] = dict(value)
        fields["coordinates"] = tuple(tuple(place) for place in fields["coordinates"])
        return cls(**fields)


def slice_devices(where: Slice) -> list[Any]:
    """The JAX devices of a slice that is not there, in the order of its chips.

    Raises:
        MissingPackageError: libtpu is not installed.
    """
    require_libtpu()
    for name, value in COMPILE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    with quiet_stderr():
        topology = topologies.get_topology_desc(
            platform="tpu",
            topology_name=where.topology_name,
            chips_per_host_bounds=where.host_bounds,
        )
    return list(topology.devices)


def require_libtpu() -> str:
    """libtpu's version.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise MissingPackageError(
            "planning compiles with the TPU compiler, which is in the package libtpu "
            "(Linux x86-64; no TPU is needed): pip install 'libtpu>=0.0.42,<0.0.43'"
        ) from None


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keeps back what libtpu writes to stderr while it loads; shows it if something fails.

    With flags for libtpu nothing is kept back: at one that it does not know it ends the process.
    """
    if os.environ.get("LIBTPU_INIT_ARGS"):
        yield
        return
    saved = os.dup(2)
    with tempfile.TemporaryFile() as output:
        os.dup2(output.fileno(), 2)
        try:
            yield
        except BaseException:
            output.seek(0)
            os.write(saved, output.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def compile_stage(stage: Stage) -> tuple[StageFacts, str]:
    """Compiles a stage, its attention kernels empty; a program that does not fit is a fact, too.

    Returns:
        the facts without the costs, and the program's text, empty when it does not fit.
    """
    import jax

    from wan_tpu.planner.kernel_bodies import with_empty_kernels

    started = time.monotonic()
    try:
        lowered = with_empty_kernels(stage)
        compiled = stage.compile_lowered(lowered)
    except jax.errors.JaxRuntimeError as error:
        if _OUT_OF_MEMORY not in str(error):
            raise
        seconds, words = time.monotonic() - started, _first_words(str(error))
        return StageFacts(name=stage.name, failure=words, compile_seconds=seconds), ""
    seconds = time.monotonic() - started
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None, "the TPU compiler says what a program needs"
    assert text is not None, "the TPU compiler gives the program's text"
    facts = StageFacts(
        name=stage.name,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        coordinates=tuple(tuple(device.coords) for device in stage.mesh.devices.flat),
        compile_seconds=seconds,
    )
    return facts, text


def kept_facts(
    cache: "FactsCache",
    key: Mapping[str, Any],
    make_stage: Callable[[], Stage],
    *,
    label: str,
    report: Callable[[str], None],
) -> StageFacts:
    """The facts of a stage and its costs, from a cache or from the compiler.

    Args:
        cache: where they are kept.
        key: of everything that decides the program.
        make_stage: called where they are not.
        label: what is reported to be compiled.
        report: called with a line before and after it.
    """

    def compiled() -> dict[str, Any]:
        report(f"compiling {label}")
        facts, text = compile_stage(make_stage())
        report(f"compiled {label} in {facts.compile_seconds:.0f} s")
        return {"facts": facts.to_json(), "text": pack_text(text)}

    program = cache.get(key, compiled)
    facts, text = StageFacts.from_json(program["facts"]), unpack_text(program["text"])
    return dataclasses.replace(facts, costs=read_program(text)) if text else facts


def pack_text(text: str) -> str:
    """A program's text for JSON: a tenth of its size."""
    return base64.b85encode(zlib.compress(text.encode())).decode()


def unpack_text(packed: str) -> str:
    """What `pack_text` packed."""
    return zlib.decompress(base64.b85decode(packed)).decode()


def _first_words(message: str) -> str:
    """The first paragraph of an error, on one line."""
    paragraph = message.strip().split("\n\n", 1)[0]
    return " ".join(paragraph.split())[:600]


class FactsCache:
    """JSON objects by key, one file each; in memory likewise, for layouts that share a program.

    Args:
        folder: where they lie; None keeps nothing there.
    """

    def __init__(self, folder: pathlib.Path | None):
        self._folder = folder
        self._here: dict[str, dict[str, Any]] = {}

    def get(self, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The object of a key, made when it is not there yet."""
        name = digest(key)
        if name not in self._here:
            path = None if self._folder is None else self._folder / f"{name}.json"
            kept = None if path is None else self._read(path)
            self._here[name] = make() if kept is None else kept
            if path is not None and kept is None:
                whole = {"format": FORMAT, "key": dict(key), "facts": self._here[name]}
                self._write(path, json.dumps(whole, default=str))
        return self._here[name]

    def _write(self, path: pathlib.Path, text: str) -> None:
        """Keeps an object; a folder that cannot be written costs the keeping alone."""
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_text(text, encoding="utf-8")
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            logger.warning(
                "cannot keep plans in %s (%s); going on without", path.parent, error.strerror
            )
            self._folder = None

    def _read(self, path: pathlib.Path) -> dict[str, Any] | None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return content["facts"] if content["format"] == FORMAT else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s): making it anew", path, error)
            return None


def digest(key: Mapping[str, Any]) -> str:
    """A short name for a key: equal for equal keys, whatever their order."""
    text = json.dumps(key, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def versions() -> dict[str, str]:
    """Versions of the packages that decide a program, and the flags libtpu reads when it loads."""
    return {"LIBTPU_INIT_ARGS": os.environ.get("LIBTPU_INIT_ARGS", "")} | _package_versions()


@functools.cache
def _package_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


STAGE_PACKAGES = ("text", "image", "transformer", "schedulers", "vae")
"""Packages that a stage may not depend on; every other one of ours decides every program."""

_NO_INFLUENCE = ("cli", "demo", "compile_cache.py", "runtime.py", "errors.py", "__init__.py")
_OF_STAGES = (
    "model.py", "placed.py", "components.py", "conditions.py", "run.py", "step_program.py",
)  # fmt: skip
"""Files of the pipeline that say what its stages are."""
_COUNTERS = ("kernel_cycles.py", "kernels.py", "schedule.py")


@functools.cache
def source_digest(*packages: str) -> str:
    """A digest of our sources that decide a program.

    Args:
        *packages: those of `STAGE_PACKAGES` that the stage is made of.
    """
    root = pathlib.Path(wan_tpu.__file__).parent
    result = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        package, *rest = path.relative_to(root).parts
        if package in _NO_INFLUENCE or (package in STAGE_PACKAGES and package not in packages):
            continue
        if package == "planner" or (package == "pipeline" and rest[-1] not in _OF_STAGES):
            continue
        result.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return result.hexdigest()


@functools.cache
def counter_digest() -> str:
    """A digest of what counts the cycles of kernels."""
    folder = pathlib.Path(__file__).parent
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in _COUNTERS)).hexdigest()
