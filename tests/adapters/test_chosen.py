"""Which transformer an adapter is added to, and what is said where it fits none."""

import logging

import numpy as np
import pytest
import torch

from tests.adapters.small import STYLES, base_source, linears, loras, make_factors, save
from wan_tpu.adapters.chosen import assign, open_adapters
from wan_tpu.adapters.write import AdapterMetadata, write_adapter
from wan_tpu.errors import CheckpointError, InputError, WanTpuError

ONE, TWO = ("transformer",), ("transformer", "transformer_2")


def write(path, seed=0, prefix="diffusion_model."):
    tensors = STYLES["B ComfyUI"].tensors(make_factors(linears()[:2], seed=seed))
    renamed = {name.replace("diffusion_model.", prefix): each for name, each in tensors.items()}
    return save(path, renamed)


def assigned(*texts, experts=TWO):
    """Strengths by transformer."""
    shapes = dict.fromkeys(experts, base_source().shapes)
    found = assign(open_adapters(texts), shapes, model="the model").by_component
    return {name: [each.strength for each in adapters] for name, adapters in found.items()}


def test_a_plain_file_goes_to_the_one_transformer_and_to_both_experts(tmp_path, caplog):
    path = write(tmp_path / "fox.safetensors")
    assert assigned(f"{path}:0.5", experts=ONE) == {"transformer": [0.5]}
    assert not caplog.records  # said only where somebody wants to hear of everything
    assert assigned(f"{path}:0.5") == {"transformer": [0.5], "transformer_2": [0.5]}
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "adapter fox.safetensors (ComfyUI, rank 4, 2 matrices) at strength 0.5 on transformer and "
        "transformer_2, since it names no expert; @high or @low chooses"
    ]


def test_which_transformer_it_is_and_why_is_said_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assigned(str(write(tmp_path / "fox_low_noise.safetensors")))
    assert [record.getMessage() for record in caplog.records] == [
        "adapter fox_low_noise.safetensors (ComfyUI, rank 4, 2 matrices) at strength 1 on "
        "transformer_2, as its name says"
    ]


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("fox_high_noise.safetensors", "transformer"),
        ("Fox-Low-Noise-r64.safetensors", "transformer_2"),
        ("wan2.2_A14B_HIGH_fox.safetensors", "transformer"),
        ("low_light.safetensors", None),
        ("high.safetensors", None),
        ("yellow_noise.safetensors", None),
    ],
)
def test_a_name_tells_the_expert(tmp_path, name, component):
    """Red when `low` alone is taken for one: `low_light` is no expert."""
    expected = {expert: [1.0] if component in (expert, None) else [] for expert in TWO}
    assert assigned(str(write(tmp_path / name))) == expected


def test_what_the_user_says_goes_before_the_name(tmp_path):
    path = write(tmp_path / "fox_high_noise.safetensors")
    assert assigned(f"{path}:0.3@low") == {"transformer": [], "transformer_2": [0.3]}


def test_one_file_with_a_strength_for_each_expert(tmp_path):
    path = write(tmp_path / "fox.safetensors")
    strengths = assigned(f"{path}:3@high", f"{path}:1.5@low")
    assert strengths == {"transformer": [3.0], "transformer_2": [1.5]}


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("transformer_2.", {"transformer": [], "transformer_2": [1.0]}),
        ("transformer_1.", {"transformer": [1.0], "transformer_2": []}),
        ("transformer.", {"transformer": [1.0], "transformer_2": [1.0]}),
        ("pipe.dit2.", {"transformer": [], "transformer_2": [1.0]}),
    ],
)
def test_keys_tell_the_expert(tmp_path, prefix, expected):
    assert assigned(str(write(tmp_path / "fox.safetensors", prefix=prefix))) == expected


def both_in_one(path):
    tensors = {}
    for seed, front in enumerate(("transformer_1.", "transformer_2.")):
        factors = make_factors(linears()[:2], seed=seed)
        for name, each in STYLES["B ComfyUI"].tensors(factors).items():
            tensors[name.replace("diffusion_model.", f"diffusion_model.{front}")] = each
    return save(path, tensors)


def test_a_file_of_both_experts(tmp_path):
    path = both_in_one(tmp_path / "fox.safetensors")
    assert assigned(str(path)) == {"transformer": [1.0], "transformer_2": [1.0]}
    assert assigned(f"{path}:2@low") == {"transformer": [], "transformer_2": [2.0]}
    shapes = dict.fromkeys(TWO, base_source().shapes)
    found = assign(open_adapters([str(path)]), shapes, model="m").by_component
    query = f"{linears()[0]}.weight"
    high, low = (loras(found[name][0].adapter)[query].down for name in TWO)
    assert not np.array_equal(high, low)


def test_a_folder_of_two_files(tmp_path):
    write(tmp_path / "fox_high_noise.safetensors")
    write(tmp_path / "fox_low_noise.safetensors", seed=1)
    assert assigned(f"{tmp_path}:0.5") == {"transformer": [0.5], "transformer_2": [0.5]}
    assert assigned(f"{tmp_path}@low") == {"transformer": [], "transformer_2": [1.0]}


def test_our_header_tells_the_expert_that_was_trained(tmp_path):
    """Of a model with one transformer there is none, and both experts have it."""
    for component, expected in (("transformer_2", [[], [1.0]]), (None, [[1.0], [1.0]])):
        path = write_adapter(
            tmp_path / "fox.safetensors",
            make_factors(linears()[:2]),
            metadata=AdapterMetadata(base_model="wan", component=component),
        )
        assert list(assigned(str(path)).values()) == expected


REFUSED = {
    "an expert of a model of one": ("fox.safetensors@high", ONE, "has one transformer and no exp"),
    "both experts for a model of one": ("both.safetensors", ONE, "the low-noise expert of a model"),
    "one expert for a model of one": ("second.safetensors", ONE, "is for the low-noise expert"),
    "an expert that the keys are not of": ("second.safetensors@high", TWO, "leave @high away"),
    "keys of an expert and plain ones": ("mixed.safetensors", TWO, "expected one or the other"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_expert_that_is_not_there(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "fox.safetensors")
    both_in_one(tmp_path / "both.safetensors")
    write(tmp_path / "second.safetensors", prefix="transformer_2.")
    mixed = STYLES["B ComfyUI"].tensors(make_factors(linears()[:1]))
    second = {name.replace("diffusion_model", "transformer_2"): t for name, t in mixed.items()}
    mixed |= {name: tensor.clone() for name, tensor in second.items()}
    save(tmp_path / "mixed.safetensors", mixed)
    text, experts, expected = REFUSED[case]
    with pytest.raises(InputError) as error:
        assigned(text, experts=experts)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def pair(module, rows, columns):
    front = f"diffusion_model.{module}"
    return {
        f"{front}.lora_A.weight": torch.ones(4, columns),
        f"{front}.lora_B.weight": torch.ones(rows, 4),
    }


OF_OTHERS = {
    "a wider model's": (pair("blocks.0.self_attn.q", 5120, 5120), "Wan 2.1 14B and 2.2 A14B"),
    "a wider model's of no known width": (pair("blocks.0.self_attn.q", 96, 96), "of width 96"),
    "a wider feed-forward": (pair("blocks.0.ffn.0", 8960, 1536), "[8960, 1536]"),
    "a deeper model's": (pair("blocks.30.self_attn.q", 72, 72), "at least 31 blocks"),
    "other input channels": (
        {"diffusion_model.patch_embedding.diff": torch.ones(72, 36, 1, 2, 2)},
        "fits models of 36 input channels"),
    "a modulation of another width": (
        {"diffusion_model.blocks.0.diff_m": torch.ones(1, 6, 96)}, "is [1, 6, 72] and the adapter"),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_OTHERS)
def test_another_models_adapter_is_told_by_name(tmp_path, case):
    tensors, expected = OF_OTHERS[case]
    path = save(tmp_path / "their.safetensors", tensors)
    with pytest.raises(CheckpointError) as error:
        assigned(str(path))
    assert expected in str(error.value)
    assert str(path) in str(error.value)


def test_an_images_keys_on_a_model_without_them(tmp_path):
    """Named, with what it fits; nothing of it is added."""
    path = save(tmp_path / "i2v.safetensors", pair("blocks.0.cross_attn.k_img", 72, 72))
    shapes = {name: s for name, s in base_source().shapes.items() if "add_k_proj" not in name}
    with pytest.raises(CheckpointError) as error:
        assign(open_adapters([str(path)]), {"transformer": shapes}, model="wan-tiny")
    assert "fits Wan 2.1's image-to-video models, and wan-tiny reads no image" in str(error.value)
    assert "blocks.0.attn2.add_k_proj.weight" in str(error.value)


def without_pictures():
    """Wan 2.2's shapes: those of 2.1 without what reads image tokens."""
    pictures = ("add_k_proj", "add_v_proj", "norm_added_k", "image_embedder")
    shapes = base_source().shapes
    return {name: shape for name, shape in shapes.items() if not any(p in name for p in pictures)}


def image_adapter(path):
    """Of a 2.1 image-to-video model: two linears, and an image's keys in a block."""
    tensors = STYLES["B ComfyUI"].tensors(make_factors(linears()[:2]))
    tensors |= pair("blocks.1.cross_attn.k_img", 72, 72)
    tensors["diffusion_model.blocks.0.cross_attn.norm_k_img.diff"] = torch.ones(72)
    return save(path, tensors)


def test_an_adapter_of_2_1_for_images_on_two_experts_without_image_tokens(tmp_path, caplog):
    """What reads image tokens is left out with one line, and is in the metadata."""
    path = image_adapter(tmp_path / "i2v.safetensors")
    chosen = open_adapters([f"{path}:3@high", f"{path}:1.5@low"])
    found = assign(chosen, dict.fromkeys(TWO, without_pictures()), model="m")
    left_out = ["blocks.0.attn2.norm_added_k.weight", "blocks.1.attn2.add_k_proj.weight"]
    assert [record.getMessage() for record in caplog.records] == [
        f"adapter i2v.safetensors (ComfyUI, rank 4, 2 matrices) at strength {strength} on "
        f"{component}, as was said; 2 tensors for image tokens, which m does not read, are left "
        f"out: {', '.join(left_out)}"
        for strength, component in (("3", "transformer"), ("1.5", "transformer_2"))
    ]
    for adapters in found.by_component.values():
        assert adapters[0].adapter.names == {f"{module}.weight" for module in linears()[:2]}
    assert [each["left_out"] for each in found.described] == [left_out, left_out]


def test_the_same_on_one_transformer_or_with_another_key_is_an_error(tmp_path):
    """Red when more than an image's keys is dropped, or on a model that is not 2.2's."""
    path = image_adapter(tmp_path / "i2v.safetensors")
    with pytest.raises(CheckpointError, match="reads no image tokens"):
        assign(open_adapters([str(path)]), {"transformer": without_pictures()}, model="m")
    only = save(tmp_path / "only.safetensors", pair("blocks.1.cross_attn.k_img", 72, 72))
    with pytest.raises(CheckpointError, match="reads no image tokens"):
        assign(open_adapters([str(only)]), dict.fromkeys(TWO, without_pictures()), model="m")
    deeper = pair("blocks.1.cross_attn.k_img", 72, 72) | pair("blocks.9.self_attn.q", 72, 72)
    path = save(tmp_path / "deeper.safetensors", deeper)
    with pytest.raises(CheckpointError, match="at least 10 blocks"):
        assign(open_adapters([str(path)]), dict.fromkeys(TWO, without_pictures()), model="m")


def test_an_adapter_of_text_to_video_on_a_model_of_images(tmp_path, caplog):
    """It is added as it is, with one line; one that has an image's keys, or no text's, without."""
    texts = [f"blocks.0.attn2.{name}" for name in ("to_k", "to_v")]
    for number, (modules, is_said) in enumerate(
        ((texts, True), ([*texts, "blocks.0.attn2.add_k_proj"], False), (linears()[:2], False))
    ):
        tensors = STYLES["B ComfyUI"].tensors(make_factors(modules))
        caplog.clear()
        assigned(str(save(tmp_path / f"{number}.safetensors", tensors)), experts=ONE)
        assert [record.getMessage() for record in caplog.records] == is_said * [
            f"adapter {number}.safetensors (ComfyUI, rank 4, 2 matrices) at strength 1 on "
            "transformer; it changes nothing of what reads image tokens, as one of text to video"
        ]


def test_what_the_metadata_says(tmp_path):
    path = write(tmp_path / "fox_low_noise.safetensors")
    shapes = dict.fromkeys(TWO, base_source().shapes)
    chosen = open_adapters([f"{path}:0.8"])
    assert assign(chosen, shapes, model="m").described == [
        {
            "file": "fox_low_noise.safetensors",
            "digest": chosen[0].file.digest,
            "strength": 0.8,
            "expert": None,
            "components": ["transformer_2"],
        }
    ]


NAMES = {
    "nothing": ("nothing.safetensors", "there is no adapter 'nothing.safetensors'"),
    "a pickle": ("fox.pt", "fox.pt is a pickle file"),
    "another suffix": ("fox.gguf", "fox.gguf is no .safetensors file"),
    "an empty folder": ("empty", "empty holds no adapter: no .safetensors file"),
    "a folder of pickles": ("pickles", "adapter_model.bin cannot be used"),
    "PEFT's without weights": ("half", "adapter_model.safetensors is missing"),
    "a folder of several": ("several", "has 2 .safetensors files (a.safetensors, b.safetensors)"),
    "an address": ("https://example.org/fox.safetensors", "there is no adapter"),
    "a zero byte": ("fox\0.safetensors", "there is no adapter 'fox\\x00"),
    "too long": ("x" * 300 + ".safetensors", "cannot be read: File name too long"),
    "nobody's home": ("~nobody-here/fox.safetensors", "there is no adapter"),
    "a folder that is here": ("several/c/d.safetensors", "there is no adapter"),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_that_is_no_adapters(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    for name in ("fox.pt", "fox.gguf", "pickles/adapter_model.bin", "half/adapter_config.json",
                 "several/a.safetensors", "several/b.safetensors", "empty/.hidden"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    text, expected = NAMES[case]
    with pytest.raises(WanTpuError) as error:
        open_adapters([text])
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_pefts_or_diffusers_has_its_plain_file_taken(tmp_path):
    write_adapter(
        tmp_path / "peft",
        make_factors(linears()[:2]),
        metadata=AdapterMetadata(base_model="wan"),
        style="peft",
    )
    write(tmp_path / "peft" / "checkpoint-10.safetensors")
    (chosen,) = open_adapters([str(tmp_path / "peft")])
    assert (chosen.file.path.name, chosen.file.style) == ("adapter_model.safetensors", "PEFT")
