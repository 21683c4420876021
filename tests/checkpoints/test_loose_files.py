"""Transformers' files of every public model by their shapes, and two experts by their names.

The shapes that tell are those of the models; everything else in the files is one number.
"""

import json

import pytest
import torch

from tests.checkpoint_factory import make_random_model
from tests.original_checkpoints import save
from wan_tpu.checkpoints.known import KNOWN_MODELS
from wan_tpu.checkpoints.loose_files import expert_by_name, read_file, read_loose_folder
from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.errors import CheckpointError

PLAIN = "diffusion_pytorch_model"

SHAPES = {
    # Layers, width, input channels, feed-forward width.
    "wan2.1-t2v-1.3b": (30, 1536, 16, 8960),
    "wan2.1-t2v-14b": (40, 5120, 16, 13824),
    "wan2.1-i2v-14b-480p": (40, 5120, 36, 13824),
    "wan2.1-flf2v-14b-720p": (40, 5120, 36, 13824),
    "wan2.2-t2v-a14b": (40, 5120, 16, 13824),
    "wan2.2-i2v-a14b": (40, 5120, 36, 13824),
    "wan2.2-ti2v-5b": (30, 3072, 48, 14336),
}


def tensors_of(model):
    """By the original names."""
    layers, width, channels, ffn = SHAPES[model]
    shapes = {
        "patch_embedding.weight": (width, channels, 1, 2, 2),
        "blocks.0.ffn.0.weight": (ffn, 1),
        "text_embedding.0.weight": (1, 4096),
    }
    if KNOWN_MODELS[model].kind.has_image_encoder:
        shapes["img_emb.proj.0.weight"] = (1280,)
    if model == "wan2.1-flf2v-14b-720p":
        shapes["img_emb.emb_pos"] = (1, 514, 1280)
    shapes |= {f"blocks.{n}.self_attn.q.weight": (1,) for n in range(layers)}
    return {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}


@pytest.mark.parametrize("model", [name for name in SHAPES if "a14b" not in name])
def test_a_file_is_recognised_by_its_shapes(tmp_path, model):
    path = save(tensors_of(model), tmp_path / "model.safetensors")
    found = read_file(path)
    assert found.known == model
    assert found.files == {"transformer": path}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("wan2.1_i2v_720p_14B_bf16", "wan2.1-i2v-14b-720p"),
        ("Wan2_1-I2V-14B-720P_fp8_e4m3fn", "wan2.1-i2v-14b-720p"),
        ("wan2.1_i2v_480p_14B_fp16", "wan2.1-i2v-14b-480p"),
        ("my-i2v-tune", "wan2.1-i2v-14b-480p"),
        ("i2v-1720px", "wan2.1-i2v-14b-480p"),
    ],
)
def test_two_models_of_equal_shapes_are_told_by_the_files_name(tmp_path, name, model):
    path = save(tensors_of("wan2.1-i2v-14b-480p"), tmp_path / f"{name}.safetensors")
    assert read_file(path).known == model


def test_one_expert_without_a_name_is_what_its_shapes_are(tmp_path):
    """An expert of T2V A14B has those of Wan 2.1's transformer; one of I2V, of nothing else."""
    path = save(tensors_of("wan2.2-t2v-a14b"), tmp_path / "a.safetensors")
    assert read_file(path).known == "wan2.1-t2v-14b"
    path = save(tensors_of("wan2.2-i2v-a14b"), tmp_path / "b.safetensors")
    message = r"one of the two experts of wan2\.2-i2v-a14b, and its name does not say which; it"
    with pytest.raises(CheckpointError, match=message):
        read_file(path)


HIGH, LOW = "transformer", "transformer_2"


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", HIGH),
        ("wan2.2_i2v_low_noise_14B_fp16.safetensors", LOW),
        ("Wan2_2-T2V-A14B-LOW_fp8_e4m3fn_scaled_KJ.safetensors", LOW),
        ("Wan2_2-I2V-A14B_HIGH_bf16.safetensors", HIGH),
        ("Wan2.2-HighNoise.safetensors", HIGH),
        ("my-low-noise-tune.safetensors", LOW),
        ("high_noise_model", HIGH),
        ("low_noise_model/diffusion_pytorch_model.safetensors", LOW),
        ("low_light.safetensors", None),
        ("highway_t2v_14B.safetensors", None),
        ("wan2.1_t2v_14B_high_quality.safetensors", None),
        ("yellow_noise.safetensors", None),
        ("a14b-highlights.safetensors", None),
    ],
)
def test_which_expert_a_name_says(tmp_path, name, expert):
    assert expert_by_name(tmp_path / name) == expert


@pytest.mark.parametrize("model", ["wan2.2-t2v-a14b", "wan2.2-i2v-a14b"])
@pytest.mark.parametrize("given", ["high", "low"])
def test_a_file_of_one_expert_finds_the_other_beside_it(tmp_path, model, given):
    paths = {
        noise: save(tensors_of(model), tmp_path / f"wan2.2_{noise}_noise_14B.safetensors")
        for noise in ("high", "low")
    }
    save(tensors_of("wan2.1-t2v-14b"), tmp_path / "another.safetensors")
    found = read_file(paths[given])
    assert found.known == model
    assert found.files == {HIGH: paths["high"], LOW: paths["low"]}


def test_one_expert_alone_lacks_the_other(tmp_path):
    path = save(tensors_of("wan2.2-t2v-a14b"), tmp_path / "tuned_low_noise.safetensors")
    found = read_file(path)
    assert (found.known, found.files) == ("wan2.2-t2v-a14b", {LOW: path})
    model = describe_model(str(path))
    assert model.kind == KNOWN_MODELS["wan2.2-t2v-a14b"].kind
    assert model.component_folder(LOW) == path
    with pytest.raises(CheckpointError, match="no files here, only its configuration"):
        model.component_folder(HIGH)


def sharded(tensors, folder):
    """A folder as the Wan team's repositories have it for each expert."""
    names = list(tensors)
    shards = {f"{PLAIN}-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for shard, part in shards.items():
        save({name: tensors[name] for name in part}, folder / shard)
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    index = folder / f"{PLAIN}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel"}))


def test_wans_own_folder_of_two_experts(tmp_path):
    for noise in ("high", "low"):
        sharded(tensors_of("wan2.2-i2v-a14b"), tmp_path / f"{noise}_noise_model")
    (tmp_path / "Wan2.1_VAE.pth").write_bytes(b"pickle")
    found = read_loose_folder(tmp_path)
    assert found is not None
    assert found.known == "wan2.2-i2v-a14b"
    assert found.files == {HIGH: tmp_path / "high_noise_model", LOW: tmp_path / "low_noise_model"}
    assert found.pickles == ("Wan2.1_VAE.pth",)
    model = describe_model(str(tmp_path))
    assert len(model.source(LOW).shapes) == len(model.source(HIGH).shapes)


def test_comfyuis_folders_of_two_experts(tmp_path):
    for noise in ("high", "low"):
        name = f"wan2.2_t2v_{noise}_noise_14B_fp8_scaled.safetensors"
        save(tensors_of("wan2.2-t2v-a14b"), tmp_path / "diffusion_models" / name)
    clip = {
        f"vision_model.encoder.layers.{n}.self_attn.q_proj.weight": torch.zeros(1) for n in (0, 1)
    }
    save(clip, tmp_path / "clip_vision" / "clip_vision_h.safetensors")
    found = read_loose_folder(tmp_path)
    assert found is not None
    assert found.known == "wan2.2-t2v-a14b"
    assert set(found.files) == {HIGH, LOW, "image_encoder"}
    assert found.files[LOW].name == "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            {"high_noise": "wan2.2-t2v-a14b", "low_noise": "wan2.2-i2v-a14b"},
            "is of wan2.2-t2v-a14b and .* of wan2.2-i2v-a14b; expected two experts of one",
        ),
        (
            {"high_noise": "wan2.2-t2v-a14b", "other": "wan2.1-t2v-14b"},
            r"has 2 files of a transformer \(.*\); give the one that is meant",
        ),
        (
            {f"{n}_high_noise": "wan2.2-t2v-a14b" for n in "ab"} | {"low_noise": "wan2.2-t2v-a14b"},
            r"has 2 files of a transformer \(a_high_noise.*, b_high_noise.*\); give the one",
        ),
        (
            {"high_noise": "wan2.2-ti2v-5b"},
            "is a transformer of wan2.2-ti2v-5b, which has no",
        ),
    ],
)
def test_experts_that_make_no_model(tmp_path, models, message):
    for name, model in models.items():
        save(tensors_of(model), tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_loose_folder(tmp_path)


@pytest.fixture(scope="module")
def a14b(tmp_path_factory):
    return make_random_model(tmp_path_factory.mktemp("model") / "a14b", "t2v-a14b")


@pytest.mark.parametrize(
    ("place", "expert"),
    [
        ("transformer_2/checkpoint-500.safetensors", LOW),
        ("transformer/checkpoint-500.safetensors", HIGH),
        ("low_noise.safetensors", LOW),
        ("transformer/low_noise.safetensors", LOW),
    ],
)
def test_a_file_in_a_models_folder_replaces_one_expert(a14b, place, expert):
    tensors = {"blocks.0.attn1.to_q.weight": torch.zeros(1)}
    path = save(tensors, a14b / place)
    model = open_model(str(path))
    path.unlink()
    assert model.files == {expert: path}
    assert model.component_folder(HIGH if expert == LOW else LOW).parent == a14b


def test_a_file_beside_two_experts_says_which_it_is(a14b):
    path = save({"blocks.0.attn1.to_q.weight": torch.zeros(1)}, a14b / "tuned.safetensors")
    with pytest.raises(CheckpointError, match="could be either of the two experts beside it; its"):
        open_model(str(path))
    path.unlink()
