"""The page of an evaluation: one HTML file without scripts, that needs no network. No JAX."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wan_tpu.pipeline.whole_file import aside_of, publish, reporting

BASE, TRAINED = "base", "trained"
"""What is compared; so are the folders of the videos called."""

REPORT, PAGE = "evaluation.json", "index.html"
"""The files of an evaluation."""

STYLE = """
:root { color-scheme: light dark; --base: #8a6d3b; --trained: #1f6fb2; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }
dt { opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; } th, td { padding: .1rem .8rem .1rem 0; text-align: right; }
th { font-weight: 600; border-bottom: 1px solid; }
figure { margin: 1rem 0; } .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.pair p { margin: 0; opacity: .7; } video { width: 100%; background: #888; }
figcaption { font-weight: 600; overflow-wrap: anywhere; }
svg { width: 100%; max-width: 40rem; height: auto; }
svg text { font-size: 12px; fill: currentColor; }
polyline { fill: none; stroke-width: 2; } .base { stroke: var(--base); }
.trained { stroke: var(--trained); } .axis { stroke: currentColor; opacity: .4; }
svg .of-base { fill: var(--base); } svg .of-trained { fill: var(--trained); }
"""

WIDTH, HEIGHT, MARGIN = 640, 260, 48
"""Of the curves, in the units of their drawing."""


def write_page(path: Path, report: Mapping[str, Any]) -> Path:
    """Writes the page beside the videos that it shows.

    Args:
        path: of the file; replaced where it is there.
        report: what `evaluation.json` says.

    Raises:
        OutputError: it cannot be written.
    """
    aside = aside_of(path)
    with reporting(path):
        try:
            aside.write_bytes(page_of(report).encode("utf-8", "xmlcharrefreplace"))
            publish(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    return path


def page_of(report: Mapping[str, Any]) -> str:
    """The whole page; everything that others wrote is quoted."""
    average = ", average" if report["ema"] else ""
    title = f"{Path(report['run']).name}, step {report['step']}{average}"
    experts = list(dict.fromkeys(row["expert"] for row in report["losses"]))
    curves = "".join(_of_expert(report, expert, len(experts) > 1) for expert in experts)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n<h1>{_text(title)}</h1>\n"
        f"{_facts(report)}{_videos(report['videos'])}"
        "<h2>Loss by noise level</h2>\n"
        f"<p>Unweighted, the mean of {len(report['data']['clips'])} clips; the same clips and the "
        f"same noise for both. Lower is better.</p>\n{curves}</html>\n"
    )


def _facts(report: Mapping[str, Any]) -> str:
    facts = {
        "model": report["model"],
        "trained": report["trains"],
        "data": report["data"]["folder"],
        "layout": report["layout"],
    }
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(is_)}</dd>\n" for name, is_ in facts.items())
    return f"<dl>\n{rows}</dl>\n"


def _videos(videos: Sequence[Mapping[str, Any]]) -> str:
    if not videos:
        return ""
    return "<h2>Videos</h2>\n" + "".join(
        f"<figure>\n<figcaption>{_text(video['prompt'])}</figcaption>\n"
        f'<div class="pair">{_video(video, BASE)}{_video(video, TRAINED)}</div>\n'
        f"<p>seed {_text(video['seed'])}</p>\n</figure>\n"
        for video in videos
    )


def _video(video: Mapping[str, Any], which: str) -> str:
    label = _text(f"{which}: {video['prompt']}")
    return (
        f'<div><p>{which}</p><video src="{_text(video[which])}" aria-label="{label}" '
        "controls loop muted autoplay playsinline></video></div>"
    )


def _of_expert(report: Mapping[str, Any], expert: str, is_named: bool) -> str:
    rows = [row for row in report["losses"] if row["expert"] == expert]
    heading = f"<h3>{_text(expert)}</h3>\n" if is_named else ""
    return heading + _curves(rows) + _table(rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = "".join(
        f"<tr><td>{row['sigma']:g}</td><td>{_number(row[BASE]['mean'])}</td>"
        f"<td>{_number(row[TRAINED]['mean'])}</td><td>{_change(row)}</td></tr>\n"
        for row in rows
    )
    head = "<tr><th>noise level</th><th>base</th><th>trained</th><th>change</th></tr>\n"
    return f"<table>\n<thead>\n{head}</thead>\n<tbody>\n{lines}</tbody>\n</table>\n"


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Both means over the noise level, from zero up; a level without a number is left out."""
    known = [row[which]["mean"] for row in rows for which in (BASE, TRAINED)]
    top = max((loss for loss in known if loss is not None), default=0.0) or 1.0
    low, high = rows[0]["sigma"], rows[-1]["sigma"]

    def across(sigma: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * (sigma - low) / (high - low)

    def up(loss: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * loss / top

    def line(which: str) -> str:
        points = [(row["sigma"], row[which]["mean"]) for row in rows]
        shown = [f"{across(s):.1f},{up(loss):.1f}" for s, loss in points if loss is not None]
        return f'<polyline class="{which}" points="{" ".join(shown)}"/>'

    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN
    marks = "".join(
        f'<text x="{across(row["sigma"]):.1f}" y="{bottom + 16}" text-anchor="middle">'
        f"{row['sigma']:g}</text>"
        for row in rows
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="loss over noise level, base and trained">'
        f'<path class="axis" fill="none" d="M{MARGIN},{MARGIN} V{bottom} H{right}"/>'
        f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end">{_number(top)}</text>'
        f'<text x="{MARGIN - 6}" y="{bottom}" text-anchor="end">0</text>{marks}'
        f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">noise level</text>'
        f'<text class="of-base" x="{right}" y="20" text-anchor="end">base</text>'
        f'<text class="of-trained" x="{right}" y="36" text-anchor="end">trained</text>'
        f"{line(BASE)}{line(TRAINED)}</svg>\n"
    )


def _change(row: Mapping[str, Any]) -> str:
    base, trained = row[BASE]["mean"], row[TRAINED]["mean"]
    if base is None or trained is None or not base:
        return ""
    return f"{100 * (trained / base - 1):+.1f} %"


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.4g}"


def _text(value: object) -> str:
    """Quoted for text and for attributes."""
    return html.escape(str(value).encode("utf-8", "replace").decode())
