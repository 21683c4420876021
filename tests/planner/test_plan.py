"""Rows, the table and the command, for wan-tiny on a v6e-4: compiled once for all tests here."""

import argparse
import dataclasses
import json
import math
import sys

import pytest

from wan_tpu.attention.names import IMPLEMENTATIONS
from wan_tpu.checkpoints.models import describe_model
from wan_tpu.cli import plan as command
from wan_tpu.cli.main import main
from wan_tpu.errors import LayoutError, UnknownNameError
from wan_tpu.planner import kernel_counter, kernel_cycles
from wan_tpu.planner import plan as planning
from wan_tpu.planner.compile import FactsCache, StageFacts
from wan_tpu.planner.hardware import find_slice
from wan_tpu.planner.plan import Planner, make_job
from wan_tpu.planner.rows import served_bytes
from wan_tpu.planner.table import format_table, to_json
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import SEQUENCE_PARALLEL, WEIGHTS, Layout, factorisations

STAGES = ("text", "context", "step", "latents")
LAYOUTS = [Layout(dp=2, sp=2), Layout(tp=4)]


def job_of(**choices):
    choices = {"stages": STAGES} | choices
    return make_job(
        describe_model("wan-tiny"), VideoRequest(prompt="p"), find_slice("v6e-4"), **choices
    )


def no_report(_):
    return None


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def rows(cache_folder):
    return Planner(job_of(), FactsCache(cache_folder), no_report).plan(LAYOUTS)


def test_a_row_for_each_layout_best_first(rows):
    assert {row.layout for row in rows} == set(LAYOUTS)
    seconds = [row.video_seconds for row in rows]
    assert seconds == sorted(seconds)
    assert all(0 < s < 1 for s in seconds)
    assert not any(row.misfits for row in rows)


def test_what_is_resident_is_in_every_stage_s_peak(rows):
    for row in rows:
        weights = row.resident.weights
        assert weights > 5e6 / 4
        for name, plan in row.stages.items():
            assert plan.served_bytes >= max(weights, plan.facts.peak_bytes), name
        assert row.stages["step"].served_bytes > weights + row.resident.context


def test_the_video_is_the_sum_of_its_stages(rows):
    row = rows[0]
    steps = job_of().request.num_inference_steps
    assert row.stages["step"].runs == steps
    by_hand = sum(p.runs * p.seconds.total for p in row.stages.values())
    assert row.video_seconds == pytest.approx(by_hand)


def test_layouts_agree_on_the_work(rows):
    """The FLOPs of a step on all devices are those of the model, whatever the split."""
    flops = [row.stages["step"].facts.costs.total("flops") for row in rows]
    assert flops[0] == pytest.approx(flops[1], rel=0.35), "tokens and heads are padded differently"


def test_the_share_of_peak_is_of_the_model_s_own_arithmetic(rows):
    """By hand, of 80 tokens in 6 layers. Red when what is padded counts, or the text's keys."""
    products = 6 * (6 * 128 * 128 + 2 * 128 * 512) + 2 * 64 * 128
    flops = 2 * (2 * 80 * products + 6 * 4 * 128 * 80 * (80 + 512))
    for row in rows:
        low, high = row.step_range
        assert row.mfu == pytest.approx([flops / (4 * 918e12 * s) for s in (high, low)])
        assert flops < 4 * row.stages["step"].facts.costs.total("flops")


def test_a_second_plan_neither_traces_nor_compiles(rows, cache_folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing may be made again")

    monkeypatch.setattr("wan_tpu.planner.compile.compile_stage", refuse)
    for name in ("make_video_model", "slice_devices"):
        monkeypatch.setattr(planning, name, refuse)
    monkeypatch.setattr(kernel_counter, "count_cycles", refuse)
    again = Planner(job_of(), FactsCache(cache_folder), no_report).plan(LAYOUTS)
    assert again == rows


def test_int8_is_another_program_with_less_to_hold(cache_folder, rows):
    """Red when a plan in bfloat16 is taken for one in int8, or whose weights are counted so."""
    job = job_of(stages=("step",), quantize="int8")
    (row,) = Planner(job, FactsCache(cache_folder), no_report).plan(LAYOUTS[:1])
    (plain,) = (each for each in rows if each.layout == LAYOUTS[0])
    weights, others = row.resident.components, plain.resident.components
    assert weights["transformer"] < 0.65 * others["transformer"]
    assert weights["text_encoder"] == others["text_encoder"]
    costs = row.stages["step"].facts.costs
    # dp2-sp2 leaves a device one branch and 40 of the 80 tokens: in each of 6 blocks six products
    # of 128 with 128 and two of 128 with 512 are in int8, and attention's are not.
    assert costs.total("int8_flops") == 2 * 40 * 6 * (6 * 128 * 128 + 2 * 128 * 512)
    assert costs.total("flops") == plain.stages["step"].facts.costs.total("flops")
    assert plain.stages["step"].facts.costs.total("int8_flops") == 0
    assert "bfloat16 and int8" in format_table(job, [row])
    assert to_json(job, [row])["quantize"] == "int8"
    with pytest.raises(UnknownNameError, match="known: int8"):
        job_of(quantize="int4")


def test_another_video_is_another_program(cache_folder, monkeypatch):
    made = []

    def compile_stage(stage):
        made.append(stage.name)
        return StageFacts(name=stage.name, failure="not now"), ""

    monkeypatch.setattr("wan_tpu.planner.compile.compile_stage", compile_stage)
    request = VideoRequest(prompt="p", num_frames=21)
    job = make_job(describe_model("wan-tiny"), request, find_slice("v6e-4"), stages=("step",))
    (row,) = Planner(job, FactsCache(None), no_report).plan(LAYOUTS[:1])
    assert made == ["step"]
    assert row.misfits == ["step"]
    assert math.isinf(row.video_seconds)
    assert "not now" in format_table(job, [row])
    assert "none of these layouts fits" in format_table(job, [row])
    assert to_json(job, [row])["layouts"][0]["stages"]["step"]["failure"] == "not now"


def test_encoding_text_and_decoding_are_compiled_once_for_all_layouts(tmp_path, monkeypatch):
    made = []

    def compile_stage(stage):
        made.append(stage.name)
        return StageFacts(name=stage.name, failure="not now"), ""

    monkeypatch.setattr("wan_tpu.planner.compile.compile_stage", compile_stage)
    job = job_of(stages=("text", "latents", "decode-next"))
    for cache in (FactsCache(tmp_path), FactsCache(None)):
        Planner(job, cache, no_report).plan([Layout(sp=4), Layout(tp=4)])
        assert [name for name in made if name != "latents"] == ["text", "decode-next"]
        assert made.count("latents") == 2
        made.clear()


def test_arguments_count_once_among_what_is_resident():
    facts = StageFacts(name="s", argument_bytes=10, peak_bytes=16)
    assert served_bytes(facts, 25) == 31
    assert served_bytes(facts, 0) == 16


@pytest.mark.parametrize(
    ("best", "room", "expected"),
    [
        (LAYOUTS[0], 2**30, ["dp2-sp2", "dp2-sp2 replicated"]),
        (Layout(dp=2, sp=2, weights="replicated"), 0, ["dp2-sp2", "dp2-sp2 replicated"]),
        (LAYOUTS[0], 0, ["dp2-sp2"]),  # no room for whole copies
        (LAYOUTS[1], 2**30, ["tp4"]),  # nothing is kept twice
    ],
)
def test_the_best_layout_is_planned_with_both_kinds_of_weights(
    rows, cache_folder, best, room, expected
):
    """Red when one that cannot fit is compiled, or the better one of two is not looked at."""

    class Rows(Planner):
        def _row(self, layout):
            row, limit = rows[0], rows[0].peak_bytes + room
            resident = self._resident(layout)
            return dataclasses.replace(row, layout=layout, resident=resident, limit_bytes=limit)

    planner = Rows(job_of(), FactsCache(cache_folder), no_report)
    assert [str(row.layout) for row in planner.plan([best], both_weights=True)] == expected
    assert [row.layout for row in planner.plan([best])] == [best]


def test_layouts_for_other_devices_are_refused_before_anything(monkeypatch):
    monkeypatch.setattr("wan_tpu.planner.compile.compile_stage", None)
    with pytest.raises(LayoutError, match="dp2-sp2"):
        Planner(job_of(), FactsCache(None), no_report).plan([Layout(tp=8)])


def test_unknown_stage():
    with pytest.raises(UnknownNameError, match="decode-first"):
        job_of(stages=("encode",))


def test_table_and_json_say_the_same(rows):
    job = job_of()
    table, report = format_table(job, rows, explain=3), to_json(job, rows, operations=True)
    assert table.splitlines()[-1] == f"use: {report['best']}"
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for row, entry in zip(rows, report["layouts"], strict=True):
        assert str(row.layout) in table
        step = entry["stages"]["step"]
        total = sum(o.get("flops", 0) * o.get("times", 1) for o in step["operations"])
        assert total == step["flops"] > 0
        parts = step["compute_seconds"] + step["memory_seconds"] + step["exposed_link_seconds"]
        assert parts == pytest.approx(step["seconds"])
    assert "by source" in table


def test_both_estimates_are_in_the_table(rows):
    """As a range: by the peaks, and with the compiler's own count of all but attention."""
    table, report = format_table(job_of(), rows), to_json(job_of(), rows)
    for row, entry in zip(rows, report["layouts"], strict=True):
        step = entry["stages"]["step"]
        ours, theirs = step["seconds"], step["seconds_by_compiler"]
        assert theirs == pytest.approx(
            step["compiler_seconds_without_attention"]
            + step["attention_seconds"]
            + step["exposed_link_seconds"]
        )
        low, high = entry["step_seconds"]
        assert [low, high] == sorted((ours, theirs))
        line = next(line for line in table.splitlines() if line.startswith(str(row.layout)))
        assert f"{low:.3g}..{high:.3g}" in line
        assert entry["video_seconds"][1] > high
        assert 0 < step["seconds_of_other_kernels"] < step["compiler_seconds_without_attention"]
        assert f"{row.layout}: {row.stages['step'].seconds.kernels:.3g} s of a step are " in table


def test_a_count_that_fails_is_said_and_attention_goes_by_its_flops(monkeypatch):
    """The real count, given no time. Red when its timeout ends the plan."""
    monkeypatch.setattr(
        kernel_counter,
        "count_cycles",
        lambda shape: kernel_cycles.count_cycles(shape, timeout=0.01),
    )
    lines = []
    job = job_of(stages=("step",))
    (row,) = Planner(job, FactsCache(None), lines.append).plan(LAYOUTS[:1])
    assert not row.kernels
    assert len(row.uncounted) == 2, "self- and cross-attention"
    assert not row.misfits
    costs, seconds = row.stages["step"].facts.costs, row.stages["step"].seconds
    assert costs is not None
    assert seconds is not None
    flops = sum(o.times * o.flops for o in costs.operations if o.attention is not None)
    assert seconds.attention == pytest.approx(flops / job.where.chip.bf16_flops)
    assert sum("FLOPs at peak: the count took more than 0.01 s" in line for line in lines) == 2
    assert "the count took more than" in format_table(job, [row])
    (entry,) = to_json(job, [row])["layouts"]
    assert "more than 0.01 s" in entry["kernels_not_counted"][0]["reason"]


def test_weights_that_do_not_fit_are_not_compiled_for(monkeypatch):
    """14B whole on each of eight devices of 15.75 GiB."""
    monkeypatch.setattr("wan_tpu.planner.compile.compile_stage", None)
    job = make_job(describe_model("wan2.1-t2v-14b"), VideoRequest(prompt="p"), find_slice("v5e-8"))
    layout = Layout(dp=2, sp=4, weights="replicated")
    (row,) = Planner(job, FactsCache(None), no_report).plan([layout])
    assert row.misfits == list(job.stages)
    (line,) = [line for line in format_table(job, [row]).splitlines() if "weights alone" in line]
    assert line.startswith("dp2-sp4 replicated, text, context, start, step")
    assert line.endswith("of 15.75 GiB")


class TestCommand:
    """`wan-tpu plan`, in this process."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        # The command starts JAX for itself; this process has eight devices for its other tests.
        monkeypatch.setattr("wan_tpu.runtime.start", lambda **_: None)

    def plan(self, *arguments):
        return main(["plan", "--model", "wan-tiny", "--topology", "v6e-4", *arguments])

    def test_twice_compiles_once(self, capsys, tmp_path):
        arguments = ("--layouts", "dp2-sp2", "--stages", "step", "--json", "plan.json")
        arguments += ("--weights", "sharded")
        assert self.plan(*arguments) == 0
        first = capsys.readouterr()
        assert "compiling 1 of 1: dp2-sp2, step" in first.err
        assert first.out.splitlines()[-1] == "use: dp2-sp2"
        report = json.loads((tmp_path / "plan.json").read_text())
        assert report["layouts"][0]["stages"]["step"]["compile_seconds"] > 0
        assert self.plan(*arguments) == 0
        second = capsys.readouterr()
        assert second.err == ""
        assert second.out == first.out

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--topology", "v6e-7"), "v6e-4, v6e-8"),
            (("--topology", "h100-8"), "v6e-1"),
            (("--layouts", "dp3"), "dp2-sp2"),
            (("--layouts", "pp2"), "unknown layout"),
            (("--size", "100x64"), "96 or 112"),
            (("--frames", "16"), "13 or 17"),
            (("--model", "wan-huge"), "wan-tiny"),
            (("--stages", "all,encode"), "decode"),
            (("--attention", "flash9"), "splash"),
            (("--dtype", "int8"), "bfloat16"),
            (("--inputs", "photo"), "last_image"),
            (("--inputs", "image"), "text alone, or a video"),
            (("--inputs", "video", "--strength", "2"), "strength"),
            (("--strength", "0.5"), "video"),
            (("--guidance-scale-2", "3"), "guidance_scale_2"),
            (("--stages", "pictures"), "runs none of image"),
        ],
    )
    def test_wrong_input_is_one_line(self, capsys, arguments, words):
        assert self.plan(*arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert words in error

    def test_output_without_a_folder_is_said_before_compiling(self, capsys):
        assert self.plan("--json", "nowhere/plan.json") == 1
        assert "there is no folder nowhere" in capsys.readouterr().err

    def test_libtpu_missing(self, capsys, monkeypatch):
        import importlib.metadata

        real = importlib.metadata.version

        def version(name):
            if name == "libtpu":
                raise importlib.metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
        assert self.plan("--layouts", "dp2-sp2", "--stages", "step", "--no-cache") == 1
        assert "pip install 'libtpu" in capsys.readouterr().err

    def test_a_plot_without_matplotlib_says_how(self, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        assert self.plan("--plot", "plan.png") == 1
        assert "wan_tpu[plot]" in capsys.readouterr().err


def test_the_plot_is_a_png(rows, tmp_path):
    pytest.importorskip("matplotlib")
    from wan_tpu.planner.plot import write_plot

    write_plot(tmp_path / "plan.png", job_of(), rows)
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["plan.png"]


@pytest.mark.parametrize("count", [1, 10])
def test_nothing_of_the_plot_lies_on_its_bars(rows, count):
    """The legend below the axes, the figures beside the bars, "estimated" in the title."""
    pytest.importorskip("matplotlib")
    from wan_tpu.planner.plot import draw_plot

    layouts = factorisations(8)[:count]
    figure = draw_plot(job_of(), [dataclasses.replace(rows[0], layout=x) for x in layouts])
    figure.draw_without_rendering()
    assert "estimated" in figure.get_suptitle()
    legends = [legend.get_window_extent() for legend in figure.legends]
    assert len(legends) == 2
    assert not legends[0].overlaps(legends[1])
    for axes in figure.axes:
        label, frame = axes.xaxis.label.get_window_extent(), axes.get_window_extent()
        assert all(0 <= legend.y0 < legend.y1 <= label.y0 for legend in legends)
        bars = [patch.get_window_extent() for patch in axes.patches]
        figures = [text.get_window_extent() for text in axes.texts if text.get_text()]
        assert len(figures) == count
        for box in figures:
            assert frame.x0 < box.x0 < box.x1 < frame.x1
            assert not any(box.overlaps(bar) for bar in bars if bar.width > 0)


def test_layouts_of_the_command():
    """Every shape by itself; where asked for, every choice that makes a difference, each once."""
    parser = argparse.ArgumentParser()
    command.add_layouts_arguments(parser)
    every = ("--sequence-parallel", "all", "--weights", "all")
    assert len(command.read_layouts(parser.parse_args([]), 8)) == 10
    layouts = command.read_layouts(parser.parse_args(every), 8)
    assert len(layouts) == len(set(layouts))
    assert {layout for layout in layouts if layout.shape == (1, 1, 8)} == {Layout(tp=8)}
    assert {(x.sequence_parallel, x.weights) for x in layouts if x.shape == (2, 4, 1)} == {
        (mode, weights) for mode in SEQUENCE_PARALLEL for weights in WEIGHTS
    }
    said = command.read_layouts(parser.parse_args(["--layouts", "dp2-sp4 ring", *every]), 8)
    assert [str(layout) for layout in said] == ["dp2-sp4 ring", "dp2-sp4 ring replicated"]
    both = command.read_layouts(parser.parse_args(["--layouts", "dp8,tp8", "--weights", "all"]), 8)
    assert [str(layout) for layout in both] == ["dp8", "dp8 replicated", "tp8"]


def test_help_names_every_attention(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    words = capsys.readouterr().out.rsplit("--attention NAME", 1)[1].split("--dtype", 1)[0]
    assert all(name in words for name in IMPLEMENTATIONS), words
