"""`wan-tpu consistency` as a user runs it: the table, the verdict, the exit code, the JSON."""

import argparse
import json
import os
import subprocess
import sys

import pytest

from wan_tpu import family
from wan_tpu.cli.consistency import ALL, _verdict, read_inputs, read_layouts
from wan_tpu.errors import LayoutError, UnknownNameError
from wan_tpu.pipeline.consistency import Comparison, Difference
from wan_tpu.sharding.layout import Layout

WRONG = """
import sys
from wan_tpu.attention import sequence_parallel

right, functions = sequence_parallel._SELF_ATTENTION["ring"]

def attends_to_padding(*arrays, num_keys, **functions):
    return right(*arrays, num_keys=None, **functions)

sequence_parallel._SELF_ATTENTION["ring"] = (attends_to_padding, functions)
from wan_tpu.cli.main import main
sys.exit(main())
"""
"""A process in which ring, and nothing else, attends to padding keys."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the command in a folder of its own."""
    keep = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    folder = tmp_path_factory.mktemp("run")

    def run(*arguments, start=("-m", "wan_tpu.cli.main")):
        return subprocess.run(
            [sys.executable, *start, "consistency", *arguments],
            capture_output=True,
            text=True,
            cwd=folder,
            env=keep,
            timeout=300,
            check=False,
        )

    run.folder = folder
    return run


SPLIT = ("--layouts", "sp2,tp2", "--weights", "sharded", "--steps", "2")


def test_consistent_layouts(run):
    done = run(*SPLIT, "--devices", "2", "--json", "figures.json")
    assert done.returncode == 0, done.stderr
    *table, verdict = done.stdout.splitlines()
    assert verdict == "consistent: 4 layouts give the one device's video"
    names = ["sp2", "sp2 allgather", "sp2 ring", "tp2"]
    assert [line[:31].rstrip() for line in table[2:]] == names
    assert "one device, to compare with" in done.stderr
    assert "3 of 4: sp2 ring" in done.stderr

    report = json.loads((run.folder / "figures.json").read_text())
    assert (report["model"], report["dtype"], report["consistent"]) == ("wan-tiny", "float32", True)
    assert report["inputs"] == []
    assert [row["name"] for row in report["layouts"]] == names
    ring = report["layouts"][2]
    assert ring["layout"] == {
        **{"dp": 1, "sp": 2, "tp": 1, "sequence_parallel": "ring", "weights": "sharded"},
        "head_ways": None,
    }
    assert (ring["attention"], ring["consistent"]) == ("chunked", True)
    for part in ("velocity", "latents"):
        assert 0 < ring[part]["max_relative"] < 1e-5
        assert 0 < ring[part]["max_absolute"] < 1e-4
        assert ring[part]["cosine"] == pytest.approx(1, abs=1e-6)
    assert ring["psnr"] is None or ring["psnr"] > 60


def test_a_layout_that_changes_the_picture_is_named_and_fails(run):
    """In this process ring attends to padding; 45 tokens over two shards have one of it."""
    split = ("--layouts", "tp2,sp2 ring", *SPLIT[2:])
    done = run(*split, "--devices", "2", "--json", "wrong.json", start=("-c", WRONG))
    assert done.returncode == 1, done.stderr
    *table, verdict = done.stdout.splitlines()
    assert verdict.startswith("not consistent, 1 of 2: sp2 ring by ")
    assert [line.endswith("<- not consistent") for line in table[2:]] == [False, True]
    report = json.loads((run.folder / "wrong.json").read_text())
    assert report["consistent"] is False
    assert [row["consistent"] for row in report["layouts"]] == [True, False]
    assert report["layouts"][1]["velocity"]["max_relative"] > 1e-3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--layouts", "pp2"], "unknown layout 'pp2'"),
        (["--layouts", "tp8", "--devices", "4"], "needs 8 devices, 4 are here; layouts for 4: tp4"),
        (["--layouts", "tp2", "--devices", "0"], "at least 1"),
        (["--sequence-parallel", "rings"], "ring"),
        (["--attention", "flash9"], "splash"),
        (["--dtype", "int8"], "bfloat16"),
        (["--size", "100x64"], "96 or 112"),
        (["--frames", "16"], "13 or 17"),
        (["--model", "wan-huge"], "wan-tiny"),
    ],
)
def test_wrong_usage(run_here, arguments, expected):
    code, out, error = run_here("consistency", *arguments)
    assert code == 2, error
    assert expected in error
    assert out == ""


def test_no_folder_for_the_json(run):
    done = run("--json", "nowhere/figures.json")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no folder nowhere" in done.stderr


def parse(**kwargs):
    options = {"layouts": ALL, "sequence_parallel": ALL, "weights": ALL, "devices": None}
    return argparse.Namespace(**(options | kwargs))


def test_all_layouts_are_every_split_of_every_divisor_in_every_variant():
    """75 for eight devices, without the one device itself; red when a choice is left out."""
    found = read_layouts(parse(), 8)
    assert len(found) == len(set(found)) == 75
    assert {layout.num_devices for layout in found} == {2, 4, 8}
    assert len({layout.shape for layout in found}) == 19
    assert len(read_layouts(parse(devices=4), 8)) == 32
    assert {layout.num_devices for layout in read_layouts(parse(), 6)} == {2, 3, 6}


def test_named_layouts_in_the_variants_asked_for():
    found = read_layouts(parse(layouts="tp8, sp8,tp8", sequence_parallel="ring"), 8)
    assert [str(layout) for layout in found] == ["tp8", "sp8 ring", "sp8 ring replicated"]


def test_a_choice_in_the_text_of_a_layout_stays():
    """Red when `sp8 ring` is compared with ulysses, too."""
    found = read_layouts(parse(layouts="sp8 ring,sp4 allgather replicated"), 8)
    names = ["sp8 ring", "sp8 ring replicated", "sp4 allgather replicated"]
    assert [str(layout) for layout in found] == names


@pytest.mark.parametrize(("count", "said"), [(1, "1 layout gives"), (2, "2 layouts give")])
def test_the_verdict_counts(count, said):
    nothing = Difference(max_absolute=0.0, max_relative=0.0, cosine=1.0)
    comparison = Comparison(
        layout=Layout(tp=2),
        attention="chunked",
        velocity=nothing,
        latents=nothing,
        psnr=float("inf"),
        consistent=True,
    )
    assert _verdict([comparison] * count) == f"consistent: {said} the one device's video\n"


def test_more_devices_than_are_here():
    with pytest.raises(LayoutError, match="sp8 needs 8 devices, 4 are here"):
        read_layouts(parse(layouts="sp8", devices=8), 4)


@pytest.mark.parametrize(
    ("kind", "text", "roles"),
    [
        (family.TEXT_TO_VIDEO, None, ""),
        (family.TEXT_TO_VIDEO, "video", "video"),
        (family.IMAGE_TO_VIDEO, None, "image"),
        (family.FIRST_LAST_FRAME_TO_VIDEO, None, "image last_image"),
        (family.IMAGE_TO_VIDEO_A14B, "image,last_image", "image last_image"),
        (family.TEXT_IMAGE_TO_VIDEO, None, "image"),
        (family.TEXT_IMAGE_TO_VIDEO, "text", ""),
    ],
)
def test_what_a_video_is_compared_of(kind, text, roles):
    """By itself what runs most of the model."""
    assert read_inputs(text, kind) == frozenset(roles.split())


def test_an_input_that_is_none():
    with pytest.raises(UnknownNameError, match="text, image, last_image, video"):
        read_inputs("image,sound", family.IMAGE_TO_VIDEO)


def test_a_picture_through_the_command(run):
    """A size that the model takes, and a picture that is drawn."""
    done = run(
        "--model", "wan-tiny-ti2v", "--layouts", "sp2 ring", "--weights", "sharded", "--devices",
        "2", "--frames", "5", "--steps", "1", "--json", "picture.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("consistent: 1 layout gives the one device's video\n")
    assert json.loads((run.folder / "picture.json").read_text())["inputs"] == ["image"]
