"""What does not fit together, alone and with a model of each kind."""

import pytest

from tests.training.runs import write_samples
from wan_tpu.checkpoints.models import WAN_TINY, describe_model
from wan_tpu.errors import InputError, LayoutError
from wan_tpu.training.config_check import check_host_devices, check_with_model
from wan_tpu.training.config_file import read_config

ALONE = {
    "no word": (["train.trains=embedding"], "embedding.word is missing"),
    "blank word": (["train.trains=embedding", "embedding.word=' '"], "embedding.word is missing"),
    "samples of nothing": (["samples.every_steps=5"], "give samples.prompts"),
    "size that is none": (["samples.size=big"], "832x480"),
    "layout that is none": (["machine.layout=pp2"], "[machine]"),
    "attention that is none": (["machine.attention=flash9"], "splash"),
    "attention without gradients": (
        ["machine.attention=flash-int8:0:0"],
        "[machine] attention is flash-int8, whose whole",
    ),
    "dtype that is none": (["machine.dtype=int8"], "bfloat16"),
    "VAE dtype that is none": (["machine.vae_dtype=fp32"], "float32"),
    "no devices": (["machine.host_devices=0"], "host_devices must be at least 1"),
    "noise levels upside down": (["flow.min_sigma=0.9", "flow.max_sigma=0.1"], "0.9 to 0.1"),
}


@pytest.mark.parametrize("case", ALONE)
def test_what_does_not_fit_together(case):
    settings, expected = ALONE[case]
    with pytest.raises(InputError) as caught:
        read_config(settings=settings, needs_data=False)
    assert expected in str(caught.value)


@pytest.mark.parametrize(("layout", "each", "processes"), [("tp4", 8, 1), ("dp4", 4, 2)])
def test_a_layout_is_of_the_devices_of_all_processes(layout, each, processes):
    settings = [f"machine.layout={layout}", f"machine.host_devices={each}"]
    config = read_config(settings=settings, needs_data=False)
    with pytest.raises(LayoutError, match="needs 4 devices, 8 are here") as caught:
        check_host_devices(config, processes)
    assert f"[machine] host_devices is {each}" in str(caught.value)
    assert ("in 2 processes" in str(caught.value)) == (processes == 2)


WITH_MODEL = {
    "expert of one transformer": (
        ["model.name=wan-tiny", "model.expert=high"],
        'model.expert is "high" and wan-tiny has one transformer',
    ),
    "no expert of two": (["model.name=wan2.2-t2v-a14b"], "high, low or both"),
    "noise levels of the other expert": (
        ["model.name=wan2.2-t2v-a14b", "model.expert=low", "flow.min_sigma=0.9"],
        "meet at 0.875",
    ),
    "noise levels of one of both experts": (
        ["model.name=wan2.2-i2v-a14b", "model.expert=both", "flow.max_sigma=0.9"],
        "meet at 0.9",
    ),
    "first frames for a model of text": (
        ["model.name=wan-tiny", "data.image_probability=0.3"],
        "wan-tiny takes none",
    ),
    "first frames for a model that has them always": (
        ["model.name=wan2.1-i2v-14b-480p", "data.image_probability=0.3"],
        "sees one in every sample",
    ),
    "rank above the linears' own": (
        ["model.name=wan-tiny", "lora.rank=129"],
        "lora.rank is 129, and the linears of wan-tiny have 128",
    ),
    "linears of image tokens": (
        ["lora.targets=['attn1.to_q', 'attn2.add_k_proj']"],
        "names attn2.add_k_proj, of image tokens, which wan-tiny has not",
    ),
    "samples of a size that the model cannot make": (
        ["samples.every_steps=9", "samples.prompts=['x']", "samples.size=100x64"],
        "[samples] width must be a positive multiple of 16",
    ),
    "samples of a length that it cannot": (
        ["samples.every_steps=9", "samples.prompts=['x']", "samples.num_frames=16"],
        "13 or 17",
    ),
    "samples of a model that needs pictures": (
        ["model.name=wan2.1-i2v-14b-480p", "samples.every_steps=9", "samples.prompts=['x']"],
        "makes videos of pictures",
    ),
    "blank prompt": (["samples.every_steps=9", "samples.prompts=[' ']"], "the prompt is empty"),
}


@pytest.mark.parametrize("case", WITH_MODEL)
def test_what_does_not_fit_the_model(case):
    settings, expected = WITH_MODEL[case]
    config = read_config(settings=settings, needs_data=False)
    with pytest.raises(InputError) as caught:
        check_with_model(config, describe_model(config.model.name))
    assert expected in str(caught.value)


def test_data_of_another_model(tmp_path):
    """From the manifest alone: before a device starts, and before files of the model are here."""
    write_samples(tmp_path / "data", WAN_TINY)
    settings = [f"data.path='{tmp_path / 'data'}'", "model.name=wan-tiny-ti2v"]
    config = read_config(settings=settings)
    with pytest.raises(InputError, match="was prepared for wan-tiny, whose latents are of other"):
        check_with_model(config, describe_model(config.model.name))
    (tmp_path / "data" / "dataset.json").unlink()
    (tmp_path / "data" / "claims.lock").touch()
    with pytest.raises(InputError, match="was not prepared to its end"):
        check_with_model(config, describe_model(config.model.name))


@pytest.mark.parametrize(
    "settings",
    [
        ["model.name=wan2.2-t2v-a14b", "model.expert=high", "flow.min_sigma=0.9"],
        ["model.name=wan2.1-i2v-14b-480p", "lora.targets=['attn2.add_k_proj']"],
        ["model.name=wan-tiny-ti2v", "data.image_probability=1"],
        ["model.name=wan-tiny", "machine.layout=dp4", "machine.host_devices=2"],
    ],
)
def test_what_fits(settings):
    config = read_config(settings=settings, needs_data=False)
    check_host_devices(config, 2)
    check_with_model(config, describe_model(config.model.name))
