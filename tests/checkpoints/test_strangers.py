"""What is handed in instead of a model, and configurations that no model has: one sentence each."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints.test_files import POINTER
from tests.damaged_models import copy_wan_tiny, weights_file
from wan_tpu.checkpoints.models import open_model
from wan_tpu.errors import CheckpointError, InputError, WanTpuError
from wan_tpu.pipeline.video_pipeline import VideoPipeline

DIFFUSERS = r"Wan-AI/Wan2\.1-T2V-1\.3B-Diffusers"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wan/wan2.1_t2v_1.3B_fp16.safetensors", "is damaged or not a safetensors file"),
        ("wan/model.GGUF", "is a GGUF file and no model folder"),
        ("wan/model.pth", "is a pickle file"),
        ("wan/notes.txt", "is a file and no model folder"),
        ("wan/model_index.json", "is a file; give its folder: wan"),
    ],
)
def test_files_that_are_there_are_not_looked_for_on_the_hub(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wan").mkdir()
    (tmp_path / name).write_text("x")
    for form in (name, f"./{name}", str(tmp_path / name)):
        with pytest.raises(CheckpointError, match=message.replace(": wan", ": .*wan")):
            open_model(form)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/gone.safetensors", f"there is no file nobody/gone.*{DIFFUSERS}"),
        ("gone.gguf", "there is no file gone.gguf, nor would a GGUF file be taken"),
        ("https://huggingface.co/Wan-AI/Wan2.1/tree/main", "hub id alone will do: Wan-AI/Wan2.1$"),
        ("huggingface.co/Wan-AI/Wan2.1", "hub id alone will do: Wan-AI/Wan2.1$"),
        ("https://example.com/wan.zip", "is an address, and models have none"),
        ("s3://bucket/wan", "is an address, and models have none"),
        ("", "unknown model ''"),
        ("~nosuchuser/x", "unknown model '~nosuchuser/x'"),
        ("x" * 5000, r"unknown model 'x{200}\.\.\.'"),
        ("x/" + "y" * 5000, r"unknown model 'x/y{198}\.\.\.'"),
        ("/" * 5000 + "x", "unknown model"),
    ],
)
def test_names_that_mean_something_else(name, message):
    with pytest.raises(InputError, match=message) as caught:
        open_model(name)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "is empty"),
        (["Wan2.1_VAE.pth", "config.json", "x.safetensors"], f"original format; .*{DIFFUSERS}"),
        (["adapter_config.json"], "holds a LoRA"),
        (["pytorch_lora_weights.safetensors"], "holds a LoRA"),
        (["wan_fp8.safetensors"], r"single file of weights.*\(wan_fp8\.safetensors\)"),
        (["wan-Q4.gguf"], r"holds a GGUF file \(wan-Q4\.gguf\)"),
        (["config.json", "diffusion_pytorch_model.safetensors"], "one part of a model"),
        (["wan/model_index.json"], "give .*/model/wan$"),
        (["snapshots/abc/model_index.json", "refs/main"], "give .*/model/snapshots/abc$"),
        (["holiday.jpg", "._x.safetensors"], f"not a model folder in diffusers.*{DIFFUSERS}"),
    ],
)
def test_folders_that_are_no_model(tmp_path, files, message):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors") and not name.startswith("."):
            save_file({"x": torch.ones(1)}, folder / name)
        else:
            (folder / name).write_text("x")
    with pytest.raises(CheckpointError, match=f"model_index.json is missing: .*{message}"):
        open_model(str(folder))


CONFIGS = [
    ("model_index.json", {"_class_name": None}, "names no _class_name"),
    (
        "model_index.json",
        {"_class_name": ["WanPipeline"]},
        "; WanPipeline and Wan",
    ),
    ("model_index.json", {"transformer_2": {"a": 1}}, "transformer_2/config.json is mis"),
    ("transformer/config.json", {"patch_size": 2}, "patch_size must be a list, 3 of them"),
    ("transformer/config.json", {"patch_size": [1, 2]}, "patch_size must be a list, 3 of them"),
    ("transformer/config.json", {"patch_size": [1, 2, "2"]}, "patch_size must be a list"),
    ("transformer/config.json", {"num_layers": "4"}, "num_layers must be a whole number of at"),
    ("transformer/config.json", {"num_layers": 0}, "num_layers must be a whole number of at"),
    ("transformer/config.json", {"num_layers": True}, "num_layers must be a whole number of at"),
    ("transformer/config.json", {"num_attention_heads": 2.0}, "num_attention_heads must be"),
    ("transformer/config.json", {"num_attention_heads": "x"}, "num_attention_heads must be"),
    ("transformer/config.json", {"eps": "small"}, "eps must be a number"),
    ("transformer/config.json", {"eps": float("nan")}, "eps must be a number, got nan"),
    ("transformer/config.json", {"cross_attn_norm": 1}, "cross_attn_norm must be true or false"),
    ("transformer/config.json", {"qk_norm": 3}, "qk_norm must be a text"),
    ("text_encoder/config.json", {"d_kv": None, "num_heads": "4"}, "num_heads must be"),
    ("text_encoder/config.json", {"feed_forward_proj": "relu"}, "gated-gelu is implemented"),
    ("vae/config.json", {"dim_mult": 4}, "dim_mult must be a list, a whole number"),
    ("vae/config.json", {"dim_mult": [1, "2"]}, "dim_mult must be a list"),
    ("vae/config.json", {"latents_mean": ["x"]}, "latents_mean must be a list, a number"),
    ("vae/config.json", {"latents_mean": None}, "has no latents_mean"),
    ("vae/config.json", {"temperal_downsample": [0, 1]}, "temperal_downsample must be a list"),
    ("generation_defaults.json", {"flow_shift": "x"}, "generation_defaults.json: could not conv"),
    ("generation_defaults.json", {"flow_shift": [3]}, "generation_defaults.json: float"),
    ("generation_defaults.json", {"flow_shift": -3}, "flow_shift must lie between"),
    ("generation_defaults.json", {"length": 3}, "unknown 'length'; known: flow_shift, fps,"),
    ("generation_defaults.json", {"width": "64"}, "width must be a whole number"),
    ("generation_defaults.json", {"fps": 1000}, "fps must lie between 1 and 240"),
    ("generation_defaults.json", {"negative_prompt": 3}, "negative_prompt must be a text"),
]


@pytest.mark.parametrize(("file", "changes", "message"), CONFIGS)
def test_values_that_no_model_has(tmp_path, file, changes, message):
    folder = copy_wan_tiny(tmp_path / "model")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message) as caught:
        VideoPipeline.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)


def test_defaults_without_a_flow_shift_have_wans(tmp_path):
    folder = copy_wan_tiny(tmp_path / "model")
    path = folder / "generation_defaults.json"
    values = json.loads(path.read_text())
    del values["flow_shift"]
    path.write_text(json.dumps(values))
    assert open_model(str(folder)).defaults.flow_shift(1280, 720) == 5.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "tokenizer in .*/tokenizer: .*(cannot be used|is there)"),
        ("{}", "tokenizer in .*/tokenizer: .*(cannot be used|is there)"),
        ("{", "tokenizer in .*/tokenizer: .*(cannot be used|is there)"),
        ("[1]", "tokenizer in .*/tokenizer: .*(cannot be used|is there)"),
        (POINTER, "tokenizer.json is git-lfs.*git lfs pull"),
    ],
)
def test_tokenizers_that_cannot_be_used(tmp_path, content, message):
    folder = copy_wan_tiny(tmp_path / "model")
    path = folder / "tokenizer" / "tokenizer.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        VideoPipeline.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model(tmp_path):
    """Red when a token beyond the table is read as its last row."""
    folder = copy_wan_tiny(tmp_path / "model")
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    size = json.loads((folder / "text_encoder" / "config.json").read_text())["vocab_size"]
    more = [f"extra{number}" for number in range(size)]
    if isinstance(vocabulary, dict):
        vocabulary |= {word: len(vocabulary) + n for n, word in enumerate(more)}
    else:
        vocabulary += [[word, -9.0] for word in more]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"the text encoder knows {size}: they are not of"):
        VideoPipeline.from_pretrained(str(folder))


def test_broken_links_and_folders_in_a_files_place(tmp_path):
    folder = copy_wan_tiny(tmp_path / "model")
    path = weights_file(folder, "vae")
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(WanTpuError, match="No such file"):
        VideoPipeline.from_pretrained(str(folder))
    path.unlink()
    path.mkdir()
    with pytest.raises(WanTpuError, match=r"diffusion_pytorch_model\.safetensors is damaged"):
        VideoPipeline.from_pretrained(str(folder))
    (folder / "vae" / "config.json").unlink()
    (folder / "vae" / "config.json").mkdir()
    with pytest.raises(WanTpuError, match=r"vae/config\.json cannot be read"):
        VideoPipeline.from_pretrained(str(folder))


@pytest.mark.parametrize("variable", ["HF_ENDPOINT", "HTTPS_PROXY", "HF_HOME"])
def test_a_hub_that_cannot_be_asked(tmp_path, variable):
    """The variables are read when the hub's package is imported, so in a process of its own."""
    code = "from wan_tpu.checkpoints.models import open_model; open_model('nobody/none')"
    value = {"HF_ENDPOINT": "foo", "HTTPS_PROXY": "http://127.0.0.1:1", "HF_HOME": "/etc/hostname"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_DOWNLOAD_TIMEOUT": "1", variable: value[variable]},
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "wan_tpu.errors.CheckpointError: nobody/none is not in the cache and cannot be downloaded: "
    )
