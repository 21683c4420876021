"""Checkpoints as people have them: each gives wan-tiny's weights, or one sentence.

wan-tiny is a known model like Wan's own, so that whatever is done to it is what happens to those.
"""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.test_files import POINTER
from tests.damaged_models import copy_wan_tiny, weights_file
from tests.original_checkpoints import (
    LAYERS,
    original,
    prefixed,
    save,
    scaled_fp8,
    transformer_names,
    wan_tiny,
)
from wan_tpu.checkpoints.known import embedded_folders
from wan_tpu.checkpoints.models import open_model
from wan_tpu.errors import WanTpuError
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import VideoRequest

COMPONENTS = open_model("wan-tiny").kind.components
TINY = embedded_folders()["wan-tiny"]
COMFY = "model.diffusion_model."
PLAIN = "diffusion_pytorch_model"
EXACT, FP8 = 0.0, 0.07
"""Largest difference, as a part of the tensor's largest number: fp8's last place is 1/16 of it."""

GOOD, BAD = [], []


def good(tolerance=EXACT, **options):
    """A maker of something that loads; it returns the name that is opened."""

    def note(make):
        GOOD.append(pytest.param(make, tolerance, options, id=make.__name__))
        return make

    return note


def bad(message):
    """A maker of something that does not, and what is said."""

    def note(make):
        BAD.append(pytest.param(make, message, id=make.__name__))
        return make

    return note


def rewrite(model, component, change, name=None):
    """Writes a component's one file anew, under another name if one is given."""
    path = weights_file(model, component)
    tensors = change(load_file(path))
    path.unlink()
    save(tensors, path.with_name(f"{name}.safetensors") if name else path)


def in_shards(model, component, stem, index, number=2):
    """A component's one file as shards; without an index where there is none to be."""
    path = weights_file(model, component)
    tensors = list(load_file(path).items())
    path.unlink()
    weight_map = {}
    for n in range(number):
        shard = f"{stem}-{n + 1:05}-of-{number:05}.safetensors"
        part = dict(tensors[n::number])
        save_file(part, path.with_name(shard))
        weight_map |= dict.fromkeys(part, shard)
    if index:
        path.with_name(index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def cast(dtype):
    return lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}


def spoiled(tensors):
    return {name: tensor + 1 for name, tensor in tensors.items()}


# ---- folders in diffusers format ----


@good()
def as_it_is(folder):
    return copy_wan_tiny(folder)


@good()
def a_name_with_spaces_and_chinese(folder):
    return copy_wan_tiny(folder / "我的 模型 v1")


@good()
def everything_in_float32(folder):
    model = copy_wan_tiny(folder)
    for component in COMPONENTS:
        rewrite(model, component, cast(torch.float32))
    return model


@good(tolerance=2**-8)
def everything_in_float16(folder):
    model = copy_wan_tiny(folder)
    for component in COMPONENTS:
        rewrite(model, component, cast(torch.float16))
    return model


@good()
def transformer_in_float64(folder):
    rewrite(copy_wan_tiny(folder), "transformer", cast(torch.float64))
    return folder


@good()
def shards_with_an_index(folder):
    model = copy_wan_tiny(folder)
    in_shards(model, "transformer", PLAIN, f"{PLAIN}.safetensors.index.json", 3)
    in_shards(model, "text_encoder", "model", "model.safetensors.index.json")
    return model


@good()
def shards_without_an_index(folder):
    in_shards(copy_wan_tiny(folder), "transformer", PLAIN, None)
    return folder


@good()
def an_old_copy_beside_it(folder):
    path = weights_file(copy_wan_tiny(folder), "transformer")
    save(spoiled(load_file(path)), path.with_name(f"{PLAIN}_old.safetensors"))
    return folder


@good()
def a_variant_beside_it_that_is_not_asked_for(folder):
    path = weights_file(copy_wan_tiny(folder), "vae")
    save(spoiled(load_file(path)), path.with_name(f"{PLAIN}.fp16.safetensors"))
    return folder


@good()
def a_pickle_beside_it(folder):
    path = weights_file(copy_wan_tiny(folder), "vae")
    path.with_name(f"{PLAIN}.bin").write_bytes(b"pickle")
    return folder


@good()
def files_of_macos(folder):
    path = weights_file(copy_wan_tiny(folder), "vae")
    path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
    (folder / "transformer" / ".DS_Store").write_bytes(b"x")
    return folder


@good()
def links_as_the_hubs_cache_has_them(folder):
    model, blobs = copy_wan_tiny(folder), folder / "blobs"
    blobs.mkdir()
    for component in COMPONENTS:
        path = weights_file(model, component)
        shutil.move(path, blobs / component)
        path.symlink_to(blobs / component)
    return model


@good(variant="fp16")
def a_variant_everywhere(folder):
    model = copy_wan_tiny(folder)
    for component, name in (("text_encoder", "model"), ("transformer", PLAIN), ("vae", PLAIN)):
        path = weights_file(model, component)
        shutil.copy(path, path.with_name(f"{name}.fp16.safetensors"))
        save(spoiled(load_file(path)), path)
    return model


@good(variant="fp16")
def a_variant_of_the_transformer_alone(folder):
    path = weights_file(copy_wan_tiny(folder), "transformer")
    shutil.move(path, path.with_name(f"{PLAIN}.fp16.safetensors"))
    return folder


@good(variant="fp16")
def a_variant_in_shards(folder):
    model = copy_wan_tiny(folder)
    plain = load_file(weights_file(model, "transformer"))
    in_shards(model, "transformer", f"{PLAIN}.fp16", f"{PLAIN}.safetensors.index.fp16.json")
    save(spoiled(plain), model / "transformer" / f"{PLAIN}.safetensors")
    return model


@good(variant="bf16")
def a_variant_in_shards_by_the_older_name_of_the_index(folder):
    model = copy_wan_tiny(folder)
    plain = load_file(weights_file(model, "transformer"))
    in_shards(model, "transformer", f"{PLAIN}.bf16", f"{PLAIN}.safetensors.bf16.index.json")
    save(spoiled(plain), model / "transformer" / f"{PLAIN}.safetensors")
    return model


@good()
def nothing_but_a_variant(folder):
    path = weights_file(copy_wan_tiny(folder), "transformer")
    shutil.move(path, path.with_name(f"{PLAIN}.bf16.safetensors"))
    return folder


@good()
def the_tied_table_by_its_second_name(folder):
    second = "encoder.embed_tokens.weight"
    rewrite(copy_wan_tiny(folder), "text_encoder", lambda tensors: {
        second if name == "shared.weight" else name: tensor for name, tensor in tensors.items()
    })  # fmt: skip
    return folder


@good()
def the_tied_table_by_both_names(folder):
    rewrite(copy_wan_tiny(folder), "text_encoder", lambda tensors: {
        **tensors, "encoder.embed_tokens.weight": tensors["shared.weight"] + 1
    })  # fmt: skip
    return folder


@good()
def a_transformer_of_original_names(folder):
    rewrite(copy_wan_tiny(folder), "transformer", lambda _: original("transformer"))
    return folder


@good()
def a_transformer_of_comfyui(folder):
    names = prefixed(COMFY, original("transformer"))
    rewrite(copy_wan_tiny(folder), "transformer", lambda _: names, "wan_tiny_t2v_fp32")
    return folder


@good()
def original_names_everywhere(folder):
    model = copy_wan_tiny(folder)
    for component in COMPONENTS:
        rewrite(model, component, lambda _, component=component: original(component))
    return model


@good(tolerance=FP8)
def a_transformer_of_fp8_with_scales(folder):
    rewrite(copy_wan_tiny(folder), "transformer", scaled_fp8)
    return folder


@good(tolerance=FP8)
def a_transformer_of_plain_fp8(folder):
    def change(tensors):
        return {
            name: tensor.to(torch.float8_e4m3fn) if tensor.ndim == 2 else tensor
            for name, tensor in tensors.items()
        }

    rewrite(copy_wan_tiny(folder), "text_encoder", change)
    return folder


# ---- files that are no folder in diffusers format ----


@good()
def a_file_of_diffusers_names(folder):
    return save(wan_tiny("transformer"), folder / "fine-tuned.safetensors")


@good()
def a_file_of_original_names(folder):
    return save(original("transformer"), folder / "fine-tuned.safetensors")


@good()
def a_file_of_comfyui(folder):
    return save(prefixed(COMFY, original("transformer")), folder / "wan_tiny.safetensors")


@good(tolerance=FP8)
def a_file_of_comfyui_in_fp8_with_scales(folder):
    tensors = prefixed(COMFY, scaled_fp8(original("transformer")))
    return save(tensors, folder / "wan_tiny_fp8_scaled.safetensors")


@good(tolerance=FP8)
def a_file_of_comfyui_in_fp8_by_newer_names(folder):
    tensors = scaled_fp8(original("transformer"), scale="weight_scale", mark=False)
    note = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    tensors["blocks.0.self_attn.q.comfy_quant"] = note
    return save(tensors, folder / "wan_tiny_fp8.safetensors")


@good()
def a_file_of_a_whole_model(folder):
    tensors = {
        **prefixed(COMFY, original("transformer")),
        **prefixed("first_stage_model.", original("vae")),
        **prefixed("text_encoders.umt5xxl.transformer.", wan_tiny("text_encoder")),
        "text_encoders.umt5xxl.spiece_model": torch.zeros(9, dtype=torch.uint8),
    }
    return save(tensors, folder / "all_in_one.safetensors")


@good()
def a_file_of_a_trainer(folder):
    tensors = prefixed("module.", wan_tiny("transformer"))
    return save(tensors, folder / "step-1000.safetensors")


@good()
def a_transformers_folder_alone(folder):
    """Most people train and save nothing else."""
    shutil.copytree(open_model("wan-tiny").component_folder("transformer"), folder)
    return folder


@good()
def a_file_in_a_model_folder_in_place_of_its_own(folder):
    model = copy_wan_tiny(folder)
    tensors = load_file(weights_file(model, "transformer"))
    rewrite(model, "transformer", spoiled)
    return save(tensors, model / "transformer" / "checkpoint-500.safetensors")


def original_folder(folder, *, as_pickles=()):
    """As the Wan team's own repository is, but for the pickles."""
    save(original("transformer"), folder / f"{PLAIN}.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 128}))
    for component, stem in (("text_encoder", "models_t5_umt5-xxl-enc-bf16"), ("vae", "Wan2.1_VAE")):
        if component in as_pickles:
            (folder / f"{stem}.pth").write_bytes(b"pickle")
        else:
            save(original(component), folder / f"{stem}.safetensors")
    tokenizer = open_model("wan-tiny").component_folder("tokenizer")
    shutil.copytree(tokenizer, folder / "google" / "umt5-xxl")
    return folder


@good()
def an_original_folder_without_pickles(folder):
    return original_folder(folder)


@good()
def an_original_folder(folder):
    """What its pickles have is taken from the public model."""
    return original_folder(folder, as_pickles=("text_encoder", "vae"))


@good()
def an_original_folder_in_shards(folder):
    names = list(original("transformer").items())
    weight_map = {}
    original_folder(folder)
    (folder / f"{PLAIN}.safetensors").unlink()
    for n in range(2):
        shard = f"{PLAIN}-{n + 1:05}-of-00002.safetensors"
        save(dict(names[n::2]), folder / shard)
        weight_map |= dict.fromkeys(dict(names[n::2]), shard)
    index = folder / f"{PLAIN}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return folder


@good()
def folders_of_comfyui(folder):
    save(prefixed(COMFY, original("transformer")), folder / "diffusion_models/wan.safetensors")
    save(
        {**wan_tiny("text_encoder"), "spiece_model": torch.zeros(9, dtype=torch.uint8)},
        folder / "text_encoders" / "umt5_xxl_fp16.safetensors",
    )
    save(original("vae"), folder / "vae" / "wan_2.1_vae.safetensors")
    return folder


# ---- what cannot be used ----


def drop(name):
    return lambda tensors: {each: tensor for each, tensor in tensors.items() if each != name}


@bad(r"transformer in .*: missing proj_out\.bias$")
def a_tensor_is_missing(folder):
    rewrite(copy_wan_tiny(folder), "transformer", drop("proj_out.bias"))
    return folder


@bad(r"transformer in .*fine-tuned\.safetensors: missing proj_out\.bias$")
def a_tensor_of_original_names_is_missing(folder):
    tensors = original("transformer")
    del tensors["head.head.bias"]
    return save(tensors, folder / "fine-tuned.safetensors")


@bad(r"transformer in .*: unexpected blocks\.0\.attn1\.gate\.weight$")
def an_unknown_tensor_of_original_names(folder):
    tensors = original("transformer") | {"blocks.0.self_attn.gate.weight": torch.ones(2)}
    return save(tensors, folder / "fine-tuned.safetensors")


@bad(r"unexpected model_ema\.decay, beside tensors whose names begin with model\.diff")
def a_tensor_that_belongs_to_nothing(folder):
    tensors = prefixed(COMFY, original("transformer")) | {"model_ema.decay": torch.ones(1)}
    return save(tensors, folder / "fine-tuned.safetensors")


@bad(r"misshapen proj_out\.bias is \[65\], expected \[64\]")
def a_tensor_of_another_shape(folder):
    rewrite(copy_wan_tiny(folder), "transformer",
            lambda tensors: {**tensors, "proj_out.bias": torch.ones(65)})  # fmt: skip
    return folder


@bad(r"model\.safetensors is git-lfs's pointer .*; run git lfs pull$")
def cloned_without_git_lfs(folder):
    weights_file(copy_wan_tiny(folder), "text_encoder").write_text(POINTER)
    return folder


@bad(r"is damaged or not a safetensors file")
def cut_short(folder):
    path = weights_file(copy_wan_tiny(folder), "transformer")
    path.write_bytes(path.read_bytes()[:-1000])
    return folder


@bad(r"no \.safetensors file in .*vae; .*\.bin cannot be used, because pickle files can run code")
def pickles_alone(folder):
    path = weights_file(copy_wan_tiny(folder), "vae")
    path.rename(path.with_suffix(".bin"))
    return folder


@bad(r"lacks .*-00002-of-00002\.safetensors, named in .*index\.json")
def a_shard_is_missing(folder):
    in_shards(copy_wan_tiny(folder), "transformer", PLAIN, f"{PLAIN}.safetensors.index.json")
    (folder / "transformer" / f"{PLAIN}-00002-of-00002.safetensors").unlink()
    return folder


@bad(r"several sets of weights .*keep one of them, or name a variant: bf16, fp16")
def two_variants_and_nothing_plain(folder):
    path = weights_file(copy_wan_tiny(folder), "transformer")
    shutil.copy(path, path.with_name(f"{PLAIN}.fp16.safetensors"))
    path.rename(path.with_name(f"{PLAIN}.bf16.safetensors"))
    return folder


@bad(r"to_q\.weight is I8, and only BF16, F16, F32, F64 and fp8 can be read as weights")
def a_transformer_of_int8(folder):
    rewrite(copy_wan_tiny(folder), "transformer", lambda tensors: {
        **tensors, "blocks.0.attn1.to_q.weight": torch.ones(128, 128, dtype=torch.int8)
    })  # fmt: skip
    return folder


@bad(r"is fp8 with values up to 448, which only scales make weights, and the file has none")
def fp8_that_has_lost_its_scales(folder):
    scaled = scaled_fp8(wan_tiny("transformer"))
    rewrite(copy_wan_tiny(folder), "transformer", lambda _: {
        name: tensor for name, tensor in scaled.items() if "scale_" not in name
    })  # fmt: skip
    return folder


@bad(r"blocks\.0\.attn1\.to_q\.weight is fp8 and has no scale, though others have")
def fp8_with_one_scale_missing(folder):
    scaled = scaled_fp8(wan_tiny("transformer"))
    del scaled["blocks.0.attn1.to_q.scale_weight"]
    rewrite(copy_wan_tiny(folder), "transformer", lambda _: scaled)
    return folder


@bad(r"scale_weight is \[4, 4\] for a weight of \[128, 128\]; one scale, or one per row")
def fp8_with_a_scale_for_each_block(folder):
    scaled = scaled_fp8(wan_tiny("transformer"))
    scaled["blocks.0.attn1.to_q.scale_weight"] = torch.ones(4, 4)
    rewrite(copy_wan_tiny(folder), "transformer", lambda _: scaled)
    return folder


@bad(r"comfy_quant tells of the form 'nvfp4'; float8_e4m3fn and float8_e5m2 can be read")
def four_bits_of_comfyui(folder):
    note = torch.tensor(list(json.dumps({"format": "nvfp4"}).encode()), dtype=torch.uint8)
    tensors = original("transformer") | {"blocks.0.self_attn.q.comfy_quant": note}
    return save(tensors, folder / "wan_nvfp4.safetensors")


@bad(r"transformer/config\.json has a quantization_config \(torchao\), which is not implemented")
def quantised_by_another_library(folder):
    path = copy_wan_tiny(folder) / "transformer" / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "torchao"}}
    path.write_text(json.dumps(config))
    return folder


@bad(r"adapter\.safetensors holds a LoRA, which is not a model by itself")
def a_lora(folder):
    name = "diffusion_model.blocks.0.self_attn.q.lora_A.weight"
    return save({name: torch.ones(4, 128)}, folder / "adapter.safetensors")


@bad(r"wan_2\.1_vae\.safetensors holds an autoencoder and no transformer; give")
def an_autoencoder_alone(folder):
    return save(original("vae"), folder / "wan_2.1_vae.safetensors")


@bad(r"holds no Wan transformer \(1 tensors, the first is unet\.weight\)$")
def a_file_of_another_model(folder):
    return save({"unet.weight": torch.ones(2)}, folder / "sd15.safetensors")


@bad(r"is a transformer of VACE, which is not implemented$")
def a_transformer_of_vace(folder):
    tensors = original("transformer") | {"vace_blocks.0.after_proj.bias": torch.ones(2)}
    return save(tensors, folder / "vace.safetensors")


@bad(r"transformer of 5 layers, width 128.* is none of wan2\.1-t2v-1\.3b, .*wan2\.2-ti2v-5b; give")
def a_transformer_of_an_unknown_size(folder):
    names = transformer_names(LAYERS["transformer"] - 1)
    tensors = original("transformer")
    return save({name: tensors[name] for name in names}, folder / "small.safetensors")


@bad(r"wan2\.2_t2v_high_noise_14B\.safetensors is a transformer of wan-tiny, which has no experts$")
def an_expert_of_a_model_of_one(folder):
    return save(original("transformer"), folder / "wan2.2_t2v_high_noise_14B.safetensors")


@bad(r"-00001-of-00002\.safetensors is one of several shards; give their folder, .*transformer$")
def one_of_two_shards(folder):
    in_shards(copy_wan_tiny(folder), "transformer", PLAIN, f"{PLAIN}.safetensors.index.json")
    return folder / "transformer" / f"{PLAIN}-00001-of-00002.safetensors"


@bad(r"vae/diffusion_pytorch_model\.safetensors holds an autoencoder and no transformer")
def the_autoencoder_of_a_model_folder(folder):
    return weights_file(copy_wan_tiny(folder), "vae")


@bad(r"model/transformer is one part of a model; give .*/model$")
def the_transformer_of_a_model_folder(folder):
    return copy_wan_tiny(folder) / "transformer"


@bad(r"high_noise_model/.*\.safetensors is a transformer of wan-tiny, which has no experts")
def an_original_folder_of_2_2_with_other_models_in_it(folder):
    for name in ("high_noise_model", "low_noise_model"):
        save(original("transformer"), folder / name / f"{PLAIN}.safetensors")
    (folder / "Wan2.1_VAE.pth").write_bytes(b"pickle")
    return folder


@bad(r"model/low_noise_model is one of two experts; give .*/model$")
def one_of_two_experts(folder):
    return an_original_folder_of_2_2_with_other_models_in_it(folder) / "low_noise_model"


@bad(r"wan\.gguf is a GGUF file and no model folder")
def a_gguf_file(folder):
    folder.mkdir()
    (folder / "wan.gguf").write_bytes(b"GGUF")
    return folder / "wan.gguf"


@bad(r"has 2 files of a transformer \(.*a\.safetensors, b\.safetensors\); give the one that is")
def two_transformers(folder):
    for name in "ab":
        save(original("transformer"), folder / f"{name}.safetensors")
    return folder


def opened(folder, make, options):
    model = open_model(str(make(folder / "model")), **options)
    return model, {component: model.source(component) for component in COMPONENTS}


@pytest.mark.parametrize(("make", "tolerance", "options"), GOOD)
def test_gives_the_weights_of_wan_tiny(tmp_path, make, tolerance, options):
    """Red when another file is read, a tensor is another, or is read without its scale."""
    model, sources = opened(tmp_path, make, options)
    assert (model.component_folder("tokenizer") / "tokenizer.json").is_file()
    for component, source in sources.items():
        expected = wan_tiny(component)
        assert set(source.shapes) == set(expected)
        for name, tensor in expected.items():
            number = tensor.float().numpy()
            found = np.asarray(source.read(name)).astype(np.float32)
            limit = tolerance * np.abs(number).max()
            assert np.abs(found - number).max() <= limit, (component, name)


def test_every_place_that_a_model_is_read_from_is_known(tmp_path):
    """Processes compare them: red when a file beside the folder is left out."""
    path = a_file_of_comfyui(tmp_path / "a")
    assert open_model(str(path)).paths == [TINY, path]
    folder = original_folder(tmp_path / "b")
    assert set(open_model(str(folder)).paths) == {
        TINY, *folder.glob("*.safetensors"), folder / "google" / "umt5-xxl"
    }  # fmt: skip
    assert open_model("wan-tiny").paths == [TINY]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_says_in_one_sentence_what_is_wrong(tmp_path, make, message):
    name = str(make(tmp_path / "model"))
    with pytest.raises(WanTpuError, match=message) as caught:
        VideoPipeline.from_pretrained(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.fixture(scope="module")
def video():
    """A short video of wan-tiny's, as it is and by a name, on one device."""
    request = VideoRequest(
        prompt="a red circle moving right on a black background", num_inference_steps=3, seed=3
    )
    device = jax.devices()[:1]
    return lambda name: VideoPipeline.from_pretrained(str(name), devices=device)(request).frames


def test_a_folder_of_original_names_gives_the_same_video(tmp_path, video):
    frames = video("wan-tiny")
    np.testing.assert_array_equal(video(original_folder(tmp_path / "original")), frames)
    # fp8 keeps 4 bits of each weight; without the scales every pixel is another.
    in_fp8 = video(a_file_of_comfyui_in_fp8_with_scales(tmp_path / "comfyui")).astype(float)
    assert np.abs(in_fp8 - frames).mean() < 3
    assert np.abs(frames - frames.mean()).mean() > 15


def test_there_are_fifty():
    assert len(GOOD) + len(BAD) >= 50
