"""The command line as a user runs it: real processes, right and wrong input, Ctrl-C."""

import json
import shutil
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from wan_tpu.checkpoints.models import KNOWN_MODELS, describe_model, open_model
from wan_tpu.pipeline.model import make_video_model
from wan_tpu.pipeline.video_file import read_frames
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import abstract_mesh

PROMPT = "a red circle moving right on a black background"


def test_generate_writes_a_video_and_its_story(run, tmp_path):
    done = run("generate", PROMPT, "--steps", "2", "--seed", "4", "-o", "out.mp4")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out.mp4\n"
    assert read_frames(tmp_path / "out.mp4").shape == (17, 64, 64, 3)
    story = json.loads((tmp_path / "out.json").read_text())
    assert story["request"]["prompt"] == PROMPT
    assert (story["seed"], story["num_devices"], story["attention"]) == (4, 1, "chunked")
    assert (story["written_by"], story["video"]) == ("wan-tpu generate", "out.mp4")
    assert "s per step" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", "out.mp4"]


def test_generate_npy_on_a_layout_of_eight_equals_one_device(run, tmp_path):
    common = ("--steps", "2", "--seed", "4", "--dtype", "float32")
    assert run("generate", PROMPT, *common, "-o", "one.npy").returncode == 0
    done = run(
        "generate", PROMPT, *common, "-o", "eight.npy",
        "--host-devices", "8", "--layout", "dp2-sp2-tp2",
        "--sequence-parallel", "allgather", "--weights", "replicated", "--attention", "reference",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, eight = np.load(tmp_path / "one.npy"), np.load(tmp_path / "eight.npy")
    assert one.dtype == np.uint8
    assert np.abs(one.astype(int) - eight.astype(int)).max() <= 1
    story = json.loads((tmp_path / "eight.json").read_text())
    layout = "dp2-sp2-tp2 allgather replicated"
    assert (story["layout"], story["num_devices"]) == (layout, 8)


def test_how_a_layout_is_split_is_heeded_where_the_layout_itself_is_chosen(run, tmp_path):
    """Red when `--sequence-parallel` and `--weights` mean nothing without `--layout`."""
    done = run(
        "generate", PROMPT, "--steps", "1", "-o", "out.npy", "--host-devices", "4",
        "--sequence-parallel", "ring", "--weights", "replicated", "--vae-dtype", "bfloat16",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    story = json.loads((tmp_path / "out.json").read_text())
    assert story["layout"] == "dp2-sp2 ring replicated"
    assert (story["dtype"], story["vae_dtype"]) == ("float32", "bfloat16")


@pytest.mark.parametrize("command", ["generate", "consistency"])
def test_help_names_every_attention_and_dtype(run_here, command):
    code, out, _ = run_here(command, "--help")
    assert code == 0
    said = " ".join(out.split())
    assert "auto, reference, dot_product, chunked, splash, flash or flash-int8" in said
    assert "--vae-dtype NAME of the VAE, bfloat16 or float32" in said


USAGE = {
    "frames not 4n+1": (["--frames", "16"], "13 or 17"),
    "size not a multiple of 16": (["--size", "100x64"], "96 or 112"),
    "size that is no size": (["--size", "big"], "832x480"),
    "unknown model": (["--model", "wan-huge"], "wan-tiny, wan-tiny-ti2v, wan2.1-t2v-1.3b"),
    "unknown variant": (["--variant", "fp8"], "known: none but the plain files"),
    "unknown layout": (["--layout", "pp2"], "dp2-sp4"),
    "layout for other devices": (["--layout", "tp4", "--host-devices", "8"], "dp2-tp4"),
    "unknown scheduler": (["--scheduler", "dpm"], "unipc"),
    "unknown attention": (["--attention", "flash9"], "splash"),
    "unknown VAE": (["--vae", "torch"], "maxdiffusion"),
    "unknown dtype": (["--dtype", "int8"], "bfloat16"),
    "unknown VAE dtype": (["--vae-dtype", "fp32"], "float32"),
    "unknown quantization": (["--quantize", "int4"], "known: int8"),
    "a way to share tokens twice": (
        ["--layout", "sp4 ring", "--sequence-parallel", "ulysses"],
        "give one of them",
    ),
    "no steps": (["--steps", "0"], "at least 1"),
    "negative seed": (["--seed", "-2"], "seed"),
    "size of nothing": (["--size", ""], "832x480"),
    "no suffix": (["-o", "out"], "write out.mp4, of which ffmpeg"),
    "standard output as the file": (["-o", "-"], ".mp4"),
    "unknown suffix": (["-o", "out.avi"], ".mp4"),
    "guidance that is no number": (["--guidance-scale", "nan"], "guidance_scale"),
    "no picture for a model that is not here yet": (
        ["--model", "wan2.1-i2v-14b-480p"],
        "takes an image, and none was given",
    ),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(run_here, tmp_path, case):
    arguments, expected = USAGE[case]
    code, _, error = run_here("generate", PROMPT, *arguments)
    assert code == 2, error
    assert expected in error
    assert not list(tmp_path.iterdir())


def test_wrong_usage_of_a_process(run, tmp_path):
    """One of them as a user meets it; the others differ in what `main` is given."""
    done = run("generate", PROMPT, "--frames", "16")
    assert done.returncode == 2, done.stderr
    assert "13 or 17" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_empty_prompt(run):
    done = run("generate", "  ")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "prompt is empty" in done.stderr


def test_prompt_of_too_many_tokens_is_cut_with_a_warning(run):
    prompt = PROMPT + " blue" * 600
    done = run("generate", prompt, "--steps", "1", "-o", "out.npy")
    assert done.returncode == 0, done.stderr
    assert "more than the 512" in done.stderr


def test_output_folder_missing(run):
    done = run("generate", PROMPT, "-o", "nowhere/out.mp4")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no folder nowhere" in done.stderr


@pytest.fixture
def damaged(tmp_path):
    from wan_tpu.checkpoints.models import open_model

    folder = open_model("wan-tiny").folder
    assert folder is not None
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    return copy


def test_truncated_weights(run, damaged):
    path = next((damaged / "transformer").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    done = run("generate", PROMPT, "--model", str(damaged))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert path.name in done.stderr


def test_renamed_tensor_is_named(run, damaged):
    from safetensors.torch import load_file, save_file

    path = next((damaged / "transformer").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["proj_in.weight"] = tensors.pop("proj_out.weight")
    save_file(tensors, path)
    done = run("generate", PROMPT, "--model", str(damaged))
    assert done.returncode == 1
    assert "missing proj_out.weight" in done.stderr
    assert "unexpected proj_in.weight" in done.stderr


def test_not_a_model_folder(run, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run("generate", PROMPT, "--model", str(tmp_path / "empty"))
    assert done.returncode == 1
    assert "model_index.json is missing" in done.stderr


class TestInspect:
    """`wan-tpu inspect`."""

    @pytest.mark.parametrize(
        ("model", "gib"), [("wan2.1-t2v-1.3b", 2.64), ("wan2.1-t2v-14b", 26.6)]
    )
    def test_known_models_offline(self, run_here, model, gib):
        code, out, error = run_here("inspect", model, "--json")
        assert code == 0, error
        report = json.loads(out)
        assert report["components"]["transformer"]["bytes"] / 2**30 == pytest.approx(gib, rel=0.05)
        assert report["components"]["text_encoder"]["bytes"] / 2**30 == pytest.approx(
            10.6, rel=0.05
        )
        rows = {row["pattern"]: row for row in report["weights"]}
        assert rows["blocks.*.attn1.to_q.weight"]["count"] in (30, 40)

    def test_layout_shows_split_and_bytes_per_device(self, run_here):
        _, out, _ = run_here("inspect", "wan2.1-t2v-14b", "--layout", "dp2-sp4", "--json")
        report = json.loads(out)
        sizes = report["components"]["transformer"]
        assert sizes["bytes_per_device"] == pytest.approx(sizes["bytes"] / 8, rel=0.02)
        _, out, _ = run_here(
            "inspect", "wan2.1-t2v-14b", "--layout", "dp2-sp4", "--weights", "replicated", "--json"
        )
        sizes = json.loads(out)["components"]["transformer"]
        assert sizes["bytes_per_device"] == sizes["bytes"]

    @pytest.mark.parametrize("option", [["--weights", "replicated"]])
    def test_a_split_of_no_layout(self, run_here, option):
        code, _, error = run_here("inspect", "wan-tiny", *option)
        assert (code, error.count("\n")) == (2, 1)
        assert "--layout dp2-sp4" in error

    # Counted on diffusers' and transformers' own modules.
    COUNTS: ClassVar = {
        "wan2.1-t2v-1.3b": {"transformer": 1_418_996_800},
        "wan2.1-t2v-14b": {"transformer": 14_288_491_584},
        "wan2.1-i2v-14b-480p": {"transformer": 16_394_878_784},
        "wan2.1-i2v-14b-720p": {"transformer": 16_394_878_784},
        "wan2.1-flf2v-14b-720p": {"transformer": 16_395_536_704},
        "wan2.2-t2v-a14b": dict.fromkeys(("transformer", "transformer_2"), 14_288_491_584),
        "wan2.2-i2v-a14b": dict.fromkeys(("transformer", "transformer_2"), 14_288_901_184),
        "wan2.2-ti2v-5b": {"transformer": 4_999_787_712, "vae": 704_688_668},
    }

    @pytest.mark.parametrize("name", KNOWN_MODELS)
    def test_every_known_model_is_counted_offline(self, run_here, name):
        code, out, error = run_here("inspect", name, "--json")
        assert code == 0, error
        report = json.loads(out)
        counted = {each: sizes["parameters"] for each, sizes in report["components"].items()}
        expected = {"text_encoder": 5_680_910_336, "vae": 126_892_531} | self.COUNTS[name]
        after = report["not_loaded"].get("image_encoder_end")
        if after is not None:  # the rest of CLIP is in the files, and read no further
            counted["image_encoder"] += after["parameters"]
            expected["image_encoder"] = 630_766_080
        assert counted == expected
        assert sum(sizes["bytes"] for sizes in report["components"].values()) == sum(
            row["num_bytes"] for row in report["weights"] if row["component"] in counted
        )

    @pytest.mark.parametrize(
        ("name", "takes"),
        [
            ("wan2.1-t2v-14b", "a text-to-video model, takes text alone, or a video"),
            ("wan2.1-i2v-14b-720p", "an image-to-video model, takes an image"),
            (
                "wan2.2-i2v-a14b",
                "an image-to-video model, takes an image, or an image and a last image, or a last "
                "image\ntransformer runs the steps from timestep 900 up, transformer_2 the others",
            ),
        ],
    )
    def test_what_a_model_takes_is_said(self, run_here, name, takes):
        _, out, _ = run_here("inspect", name)
        assert out.startswith(f"{name}, bfloat16\n{takes}\n")
        assert ("transformer_2: as transformer" in out) == ("a14b" in name)

    @pytest.mark.parametrize("vae_dtype", ["bfloat16", "float32"])
    @pytest.mark.parametrize(
        "name", ["wan-tiny", "wan2.1-t2v-14b", "wan2.1-flf2v-14b-720p", "wan2.2-i2v-a14b"]
    )
    def test_what_is_shown_is_what_the_pipeline_and_the_planner_hold(
        self, run_here, name, vae_dtype
    ):
        layout = parse_layout("dp2-sp4")
        model = make_video_model(
            describe_model(name),
            abstract_mesh(layout),
            layout,
            dtype=jnp.dtype("bfloat16"),
            vae_dtype=jnp.dtype(vae_dtype),
            attention="reference",
        )
        options = ("--layout", "dp2-sp4", "--vae-dtype", vae_dtype, "--json")
        _, out, _ = run_here("inspect", name, *options)
        shown = json.loads(out)["components"]
        assert {each: sizes["bytes_per_device"] for each, sizes in shown.items()} == {
            each: component.bytes_per_device for each, component in model.components.items()
        }

    def test_files_are_weighed(self, run_here):
        folder = open_model("wan-tiny").component_folder("vae")
        _, out, _ = run_here("inspect", "wan-tiny", "--json")
        (file,) = folder.glob("*.safetensors")
        assert json.loads(out)["components"]["vae"]["bytes_on_disk"] == file.stat().st_size

    def test_table(self, run):
        done = run("inspect", "wan-tiny", "--layout", "tp8")
        assert done.returncode == 0, done.stderr
        assert "blocks.*.attn1.to_q.weight" in done.stdout
        assert "per device" in done.stdout
        assert "on the disk" in done.stdout

    def test_unknown_model(self, run):
        done = run("inspect", "wan-huge")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
