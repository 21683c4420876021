"""Folders of every kind in other names and forms: each gives the same weights, or one sentence."""

import json
import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file

from tests.checkpoint_factory import TRANSFORMER, make_random_model
from tests.damaged_models import weights_file
from tests.original_checkpoints import (
    by_diffusers,
    prefixed,
    save,
    scaled_fp8,
    transformer_names,
    wan_2_2_vae_name,
)
from wan_tpu.checkpoints.models import open_model
from wan_tpu.errors import CheckpointError
from wan_tpu.pipeline.video_pipeline import VideoPipeline

PLAIN = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    kinds = ("flf2v", "i2v-a14b", "ti2v")
    return {kind: make_random_model(root / kind, kind) for kind in kinds}


@pytest.fixture
def copied(folders, tmp_path):
    return lambda kind: shutil.copytree(folders[kind], tmp_path / kind)


def rewrite(folder, component, change: Callable[[dict], dict]):
    path = weights_file(folder, component)
    tensors = change(load_file(path))
    path.unlink()
    save(tensors, path)


def original_transformer(tensors):
    """By the Wan team's names."""
    takes_image = any("add_k_proj" in name for name in tensors)
    names = transformer_names(TRANSFORMER["num_layers"], takes_image=takes_image)
    ours = by_diffusers(convert_wan_transformer_to_diffusers, names)
    if takes_image:
        ours["img_emb.emb_pos"] = "condition_embedder.image_embedder.pos_embed"
    assert set(ours.values()) == set(tensors)
    return {name: tensors[own] for name, own in ours.items()}


def a_transformer_of_original_names(folder):
    rewrite(folder, "transformer", original_transformer)


def a_transformer_of_an_old_image_to_video_file(folder):
    def change(tensors):
        norms = {f"blocks.{n}.cross_attn.norm_q_img.weight": torch.ones(72) for n in range(3)}
        return prefixed("model.diffusion_model.", {**original_transformer(tensors), **norms})

    rewrite(folder, "transformer", change)


def an_image_encoder_without_a_projection(folder):
    """`CLIPVisionModel`'s names."""

    def change(tensors):
        inside = {n: t for n, t in tensors.items() if n.startswith("vision_model.")}
        return {name.removeprefix("vision_model."): tensor for name, tensor in inside.items()}

    rewrite(folder, "image_encoder", change)


def an_image_encoder_of_an_older_transformers(folder):
    positions = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    rewrite(folder, "image_encoder", lambda tensors: {**tensors, **positions})


def both_experts_of_original_names(folder):
    for expert in ("transformer", "transformer_2"):
        rewrite(folder, expert, original_transformer)


def the_second_expert_in_shards(folder):
    path = weights_file(folder, "transformer_2")
    tensors = list(load_file(path).items())
    path.unlink()
    weight_map = {}
    for n in range(2):
        shard = f"{PLAIN}-0000{n + 1}-of-00002.safetensors"
        save_file(dict(tensors[n::2]), path.with_name(shard))
        weight_map |= dict.fromkeys(dict(tensors[n::2]), shard)
    index = path.with_name(f"{PLAIN}.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": weight_map}))


def a_variant_of_the_second_expert_alone(folder):
    path = weights_file(folder, "transformer_2")
    shutil.copy(path, path.with_name(f"{PLAIN}.fp16.safetensors"))
    spoiled = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save(spoiled, path)


def a_second_expert_of_fp8_with_scales(folder):
    rewrite(folder, "transformer_2", lambda tensors: scaled_fp8(original_transformer(tensors)))


def an_autoencoder_of_original_names(folder):
    def change(tensors):
        return {wan_2_2_vae_name(name, 1): tensor for name, tensor in tensors.items()}

    rewrite(folder, "vae", change)


EXACT, FP8 = 0.0, 0.07
SAME = [
    ("flf2v", a_transformer_of_original_names, EXACT, None),
    ("flf2v", a_transformer_of_an_old_image_to_video_file, EXACT, None),
    ("flf2v", an_image_encoder_without_a_projection, EXACT, None),
    ("flf2v", an_image_encoder_of_an_older_transformers, EXACT, None),
    ("i2v-a14b", both_experts_of_original_names, EXACT, None),
    ("i2v-a14b", the_second_expert_in_shards, EXACT, None),
    ("i2v-a14b", a_variant_of_the_second_expert_alone, EXACT, "fp16"),
    ("i2v-a14b", a_second_expert_of_fp8_with_scales, FP8, None),
    ("ti2v", an_autoencoder_of_original_names, EXACT, None),
]


@pytest.mark.parametrize(("kind", "change", "tolerance", "variant"), SAME)
def test_the_same_weights_in_another_form(folders, copied, kind, change, tolerance, variant):
    """Red when a tensor is another's, an expert is the other one, or a scale is forgotten."""
    folder = copied(kind)
    change(folder)
    expected, found = open_model(str(folders[kind])), open_model(str(folder), variant)
    assert found.kind == expected.kind
    for component in expected.kind.components:
        theirs, ours = expected.source(component), found.source(component)
        assert dict(ours.shapes) == dict(theirs.shapes)
        for name in theirs.shapes:
            tensor = np.asarray(theirs.read(name))
            limit = tolerance * np.abs(tensor).max()
            difference = np.abs(np.asarray(ours.read(name)) - tensor).max()
            assert difference <= limit, (component, name)


def an_expert_that_lacks_a_tensor(folder):
    rewrite(folder, "transformer_2", lambda t: {n: x for n, x in t.items() if n != "proj_out.bias"})


def an_expert_that_takes_no_pictures(folder):
    """A file of the text-to-video expert under this model's configuration."""

    def change(tensors):
        name = "patch_embedding.weight"
        return {**tensors, name: tensors[name][:, :6]}

    rewrite(folder, "transformer_2", change)


def an_autoencoder_of_other_latents(folder):
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    config |= {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    path.write_text(json.dumps(config))


def an_image_encoder_of_another_width(folder):
    path = folder / "image_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 48}))


def a_text_encoder_of_another_width(folder):
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"d_model": 48}))


WRONG = [
    ("i2v-a14b", an_expert_that_lacks_a_tensor, r"transformer_2 in .*: missing proj_out\.bias$"),
    (
        "i2v-a14b",
        an_expert_that_takes_no_pictures,
        r"transformer_2 in .*: misshapen patch_embedding\.weight is \[72, 6, 1, 2, 2\], expected",
    ),
    (
        "i2v-a14b",
        an_autoencoder_of_other_latents,
        r"the vae's z_dim is 4 and the transformer's out_channels is 6; they are of diff",
    ),
    (
        "ti2v",
        an_autoencoder_of_other_latents,
        r"the vae's z_dim is 4 and the transformer's out_channels is 6; they are of diff",
    ),
    (
        "ti2v",
        a_text_encoder_of_another_width,
        r"the text_encoder's d_model is 48 and the transformer's text_dim is 40; they are of",
    ),
    (
        "flf2v",
        an_image_encoder_of_another_width,
        r"the image_encoder's hidden_size is 48 and the transformer's image_dim is 32; they are",
    ),
]


@pytest.mark.parametrize(("kind", "change", "message"), WRONG)
def test_says_in_one_sentence_what_is_wrong(copied, kind, change, message):
    folder = copied(kind)
    change(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        VideoPipeline.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)
