"""What a model is loaded with: names that exist, one layout, the same in all processes."""

import dataclasses
import json

import pytest

from wan_tpu.adapters.choice import AdapterChoice
from wan_tpu.attention.names import IMPLEMENTATIONS
from wan_tpu.attention.resolve import resolve_implementation
from wan_tpu.errors import LayoutError, UnknownNameError
from wan_tpu.pipeline.names import VAES
from wan_tpu.pipeline.options import LoadOptions
from wan_tpu.sharding.layout import SEQUENCE_PARALLEL, Layout, default_layout
from wan_tpu.vae.backends import BACKENDS


@pytest.mark.parametrize(
    ("field", "known"),
    [
        ("sequence_parallel", "ring"),
        ("weights", "replicated"),
        ("attention", "flash"),
        ("vae", "maxdiffusion"),
        ("vae_dtype", "float32"),
        ("dtype", "bfloat16"),
        ("quantize", "int8"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_those_that_do(field, known):
    assert getattr(LoadOptions(**{field: known}), field) == known
    with pytest.raises(UnknownNameError, match=f"'nothing'; known: .*{known}"):
        LoadOptions(**{field: "nothing"})


def test_the_names_are_those_that_are_implemented():
    assert tuple(BACKENDS) == VAES
    for name in IMPLEMENTATIONS[1:]:
        assert resolve_implementation(name, "cpu") == name


def test_a_layout_as_text_takes_its_choices_along():
    options = LoadOptions.from_text(
        layout="dp2-sp4", sequence_parallel="ring", weights="replicated"
    )
    assert options.layout == Layout(dp=2, sp=4, sequence_parallel="ring", weights="replicated")
    assert options.layout_for(8, Layout(sp=8)) == options.layout
    with pytest.raises(LayoutError, match="needs 8 devices, 4 are here"):
        options.layout_for(4, Layout(sp=4))


@pytest.mark.parametrize("text", ["sp4 ring", "sp4 ring replicated", "sp4 replicated"])
def test_a_layout_that_says_its_choices(text):
    """Each alone is enough, the same twice is no conflict, another one is."""
    options = LoadOptions.from_text(layout=text)
    assert str(options.layout) == text
    assert options.layout is not None
    assert options == LoadOptions.from_text(
        layout=text,
        sequence_parallel=options.layout.sequence_parallel,
        weights=options.layout.weights,
    )
    with pytest.raises(LayoutError, match="give one of them"):
        LoadOptions.from_text(layout=text, sequence_parallel="allgather", weights="sharded")


def test_a_choice_that_makes_no_difference_is_no_conflict():
    assert LoadOptions.from_text(layout="tp8", sequence_parallel="ring").layout == Layout(tp=8)


def test_without_one_the_layout_is_chosen():
    assert LoadOptions().layout_for(8, default_layout(8, 40)) == default_layout(8, 40)


@pytest.mark.parametrize("mode", SEQUENCE_PARALLEL)
def test_choices_without_a_layout_are_honoured(mode):
    """Red when `--sequence-parallel ring` without `--layout` runs ulysses, as it did."""
    chosen = LoadOptions(sequence_parallel=mode, weights="replicated").layout_for(
        8, default_layout(8, 40)
    )
    assert (chosen.num_devices, chosen.sequence_parallel) == (8, mode)
    assert chosen.weights == "replicated"
    assert chosen.sp > 1


def test_identity_is_every_option_and_ready_for_json():
    """Red when a new option could differ between the processes of a slice."""
    adapter = AdapterChoice(path="fox.safetensors", strength=0.5)
    options = LoadOptions.from_text(
        layout="sp2", sequence_parallel="ring", vae_dtype="float32", adapters=(adapter,)
    )
    identity = json.loads(json.dumps(options.identity()))
    assert identity.keys() == {field.name for field in dataclasses.fields(LoadOptions)}
    assert (identity["layout"], identity["vae_dtype"]) == ("sp2 ring", "float32")
    assert identity["adapters"] == [{"path": "fox.safetensors", "strength": 0.5, "expert": None}]
    assert identity != LoadOptions.from_text(layout="sp2").identity()


def test_the_folder_of_adapters_may_lie_elsewhere_on_another_machine(tmp_path):
    here, there = (LoadOptions(adapter_folder=tmp_path / name) for name in ("here", "there"))
    assert here.identity() == there.identity() != LoadOptions().identity()
