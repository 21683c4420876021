"""The adapters that a user chose, read, and which transformer of a model each is added to.

Of two experts it is what the user says, else what the keys say, else what the file's header or name
says (`high_noise`, `low_noise`); one that says nothing is added to both.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wan_tpu.adapters.choice import EXPERTS, AdapterChoice
from wan_tpu.adapters.experts import expert_of_file
from wan_tpu.adapters.files import find_files
from wan_tpu.adapters.fit import Shapes, fit_adapter
from wan_tpu.adapters.form import Adapter
from wan_tpu.adapters.merge import Strengthened
from wan_tpu.adapters.styles import AdapterFile, read_adapter
from wan_tpu.checkpoints.loose_files import expert_by_name
from wan_tpu.errors import InputError
from wan_tpu.family import TRANSFORMER, TRANSFORMER_2

logger = logging.getLogger(__name__)

_IN_WORDS = {TRANSFORMER: "the high-noise expert", TRANSFORMER_2: "the low-noise expert"}

_OPEN = ", since it names no expert; @high or @low chooses"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChosenAdapter:
    """A choice and one of its files, read."""

    choice: AdapterChoice
    file: AdapterFile

    def to_json(self) -> dict[str, Any]:
        """What says which adapter it is, on whichever machine."""
        return {
            "file": self.file.path.name,
            "digest": self.file.digest,
            "strength": self.choice.strength,
            "expert": self.choice.expert,
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assigned:
    """The adapters of a model by transformer.

    Attributes:
        by_component: in the order in which they are added.
        described: for a video's metadata.
    """

    by_component: Mapping[str, Sequence[Strengthened]]
    described: Sequence[Mapping[str, Any]]


def open_adapters(
    choices: Iterable[AdapterChoice | str], *, with_numbers: bool = True
) -> tuple[ChosenAdapter, ...]:
    """Reads the files of choices; of a pair for two experts, those that are meant.

    Args:
        choices: as a user gives them; a text is what `--lora` takes.
        with_numbers: see `read_adapter`.

    Raises:
        InputError: nothing is called so, or a strength is no number.
        CheckpointError: a file is damaged, or no adapter of a Wan transformer.
    """
    opened = []
    for choice in choices:
        choice = AdapterChoice.parse(choice) if isinstance(choice, str) else choice
        files = find_files(choice.path)
        if len(files) > 1 and choice.expert is not None:
            files = [file for file in files if expert_by_name(file) == EXPERTS[choice.expert]]
        read = (read_adapter(file, with_numbers=with_numbers) for file in files)
        opened += [ChosenAdapter(choice=choice, file=file) for file in read]
    return tuple(opened)


def assign(
    chosen: Sequence[ChosenAdapter],
    shapes: Mapping[str, Shapes],
    *,
    model: str,
    quiet: bool = False,
) -> Assigned:
    """Which adapters are added to each transformer; every one fits it.

    Args:
        chosen: from `open_adapters`.
        shapes: of the tensors of each of the model's transformers, high noise first.
        model: what messages call it.
        quiet: whether the log's readers have been told already.

    Raises:
        InputError: an expert is chosen that the model or the file does not have.
        CheckpointError: an adapter is of another model.
    """
    by_component: dict[str, list[Strengthened]] = {name: [] for name in shapes}
    described = []
    for each in chosen:
        adapters, why = _experts_of(each, tuple(shapes), model)
        strength = each.choice.strength
        fitted = {
            component: fit_adapter(
                adapter, shapes[component],
                num_experts=len(shapes), where=str(each.file.path), model=model,
            )
            for component, adapter in adapters.items()
        }  # fmt: skip
        for component, fit in fitted.items():
            by_component[component].append(Strengthened(adapter=fit.adapter, strength=strength))
        note = "".join(dict.fromkeys(fit.note for fit in fitted.values()))
        loud = logging.WARNING if note or why == _OPEN else logging.INFO
        logger.log(
            logging.DEBUG if quiet else loud,
            "adapter %s (%s, %s) at strength %g on %s%s%s",
            each.file.path.name,
            each.file.style,
            next(iter(fitted.values())).adapter.described,
            strength,
            " and ".join(adapters),
            why,
            note,
        )
        left_out = dict.fromkeys(name for fit in fitted.values() for name in fit.left_out)
        added = {**each.to_json(), "components": list(adapters)}
        described.append({**added, "left_out": list(left_out)} if left_out else added)
    return Assigned(by_component=by_component, described=described)


def _experts_of(
    chosen: ChosenAdapter, experts: tuple[str, ...], model: str
) -> tuple[Mapping[str, Adapter], str]:
    """The parts of a file by the transformer that each is for, and why, for the log."""
    choice, file = chosen.choice, chosen.file
    named = {expert: part for expert, part in file.adapters.items() if expert is not None}
    plain = file.adapters.get(None)
    if plain is not None and named:
        raise InputError(
            f"{file.path} has keys that name {' and '.join(sorted(named))} and keys that name "
            "no expert; expected one or the other"
        )
    if len(experts) == 1:
        return _of_one(chosen, named, plain, model), ""
    if choice.expert is not None:
        wanted = EXPERTS[choice.expert]
        part = plain if plain is not None else named.get(wanted)
        if part is None:
            raise InputError(
                f"{choice}: its keys are those of {_IN_WORDS[next(iter(named))]}; leave "
                f"@{choice.expert} away"
            )
        return {wanted: part}, ", as was said"
    if plain is None:
        return named, ", as its keys say"
    expert, why = expert_of_file(file)
    if expert is not None:
        return {expert: plain}, f", as its {why} says"
    return dict.fromkeys(experts, plain), _OPEN


def _of_one(
    chosen: ChosenAdapter, named: Mapping[str, Adapter], plain: Adapter | None, model: str
) -> Mapping[str, Adapter]:
    """The part of a file for a model of one transformer."""
    if chosen.choice.expert is not None:
        raise InputError(
            f"{chosen.choice}: {model} has one transformer and no experts; leave "
            f"@{chosen.choice.expert} away"
        )
    if plain is not None:
        return {TRANSFORMER: plain}
    raise InputError(
        f"{chosen.file.path} is for {' and '.join(_IN_WORDS[expert] for expert in sorted(named))} "
        f"of a model of two, and {model} has one transformer"
    )
