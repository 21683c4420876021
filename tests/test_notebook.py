"""docs/tpu-notebook.ipynb: its cells run, here with wan-tiny; what it says is what is so."""

import ast
import json
import pathlib
import re

import pytest

from wan_tpu.pipeline.video_file import read_frames

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "docs" / "tpu-notebook.ipynb").read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
TEXT = "".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell not in CODE)

HERE = {
    "MODEL": "wan-tiny", "STEPS": 4, "LAYOUT": "dp2-sp4",
    "PROMPT": "a red circle moving right on a black background",
    "SECOND_PROMPT": "a blue circle moving right on a black background",
}  # fmt: skip


def tags(cell):
    return cell["metadata"].get("tags", [])


def source(tag):
    (cell,) = [cell for cell in CODE if tag in tags(cell)]
    return "".join(cell["source"])


def run(cell, names):
    """Runs a cell as a notebook does; what its last line is worth."""
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {cell['id']}", "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), f"cell {cell['id']}", "eval"), names)


def test_the_cells_run_from_first_to_last(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    shown = []
    for cell in CODE:
        if "install" in tags(cell):
            continue  # another test looks at it
        value = run(cell, names)
        if "parameters" in tags(cell):
            assert names.keys() >= HERE.keys()
            names.update(HERE)
        if hasattr(value, "_repr_html_"):
            shown.append(value._repr_html_())
    assert [html.startswith("<video") for html in shown] == [True, True]
    first, second = read_frames("first.mp4"), read_frames("second.mp4")
    assert first.shape == second.shape == (17, 64, 64, 3)
    said = capsys.readouterr().out
    assert "8 x cpu: wan-tiny, its own size" in said
    assert "denoise 4/4" in said
    assert "layout dp2-sp4, attention" in said
    # 0.8 of four steps ran on the clip, cut off as diffusers does.
    assert sum(names["second"]["steps"].values()) == 3


def chosen(device_kind, count, monkeypatch, **given):
    """What the notebook makes on a machine with such chips."""
    import jax

    class Chip:
        pass

    chip = Chip()
    chip.device_kind = device_kind
    monkeypatch.setattr(jax, "devices", lambda: [chip] * count)
    names = {}
    for cell in CODE:
        if "parameters" in tags(cell) or cell["id"] == "chips":
            run(cell, names)
            names.update(given)
    return names["model"].rpartition("/")[2], names["size"]


def test_each_accelerator_makes_what_the_table_says_fits_it(monkeypatch):
    small, large = "Wan2.1-T2V-1.3B-Diffusers", "Wan2.2-TI2V-5B-Diffusers"
    assert chosen("TPU v6 lite", 1, monkeypatch) == (large, None)
    assert chosen("TPU v5 lite", 1, monkeypatch) == (small, "416x240")
    assert chosen("TPU v5 lite", 8, monkeypatch) == (large, None)
    assert chosen("TPU v6 lite", 8, monkeypatch) == (small, None)
    assert chosen("cpu", 1, monkeypatch) == ("wan-tiny", None)
    tiny = {"MODEL": "wan-tiny"}
    assert chosen("TPU v5 lite", 1, monkeypatch, **tiny) == ("wan-tiny", None)


def test_what_is_installed_is_what_the_makefile_installs():
    words = source("install")
    (torch,) = re.findall(r"torch==\S+", words)
    assert f"TORCH := {torch}" in (ROOT / "Makefile").read_text()
    lists = re.findall(r"-r \{FOLDER\}/(\S+)", words)
    assert lists == ["requirements/uv.txt", "requirements/slice.txt"]
    assert all((ROOT / name).is_file() for name in lists)
    assert words.count("--no-deps") == 3


def test_the_figures_are_those_of_the_results():
    pages = "2026-11-27-small-slices.md", "2026-11-26-family-plans.md"
    results = "".join((ROOT / "benchmarks" / "results" / page).read_text() for page in pages)
    rows = re.findall(r"^\| (v\S+) .*?\| ([\d.]+) of ([\d.]+) \| (\d+) to (\d+) \|$", TEXT, re.M)
    assert len(rows) == 5
    for slice_name, peak, _, low, high in rows:
        found = re.findall(
            rf"\| {slice_name} \| [\w-]+ \| \w+ \| ([\d.]+) \|.*\| ([\d.]+)\.\.([\d.]+) \|$",
            results, re.M,
        )  # fmt: skip
        figures = {(f"{float(p):.1f}", f"{float(a):.0f}", f"{float(b):.0f}") for p, a, b in found}
        assert (peak, low, high) in figures, slice_name


def test_it_is_a_notebook_without_results():
    nbformat = NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]
    assert nbformat == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,64}", each) for each in ids)
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CODE)


@pytest.mark.parametrize("cell", CODE, ids=lambda cell: cell["id"])
def test_the_install_cell_alone_has_words_that_are_no_python(cell):
    lines = "".join(cell["source"]).splitlines()
    assert ("install" in tags(cell)) == any(line.startswith(("%", "!")) for line in lines)
