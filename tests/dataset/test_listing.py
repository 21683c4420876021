"""Folders and manifests: what is listed, in which order, and what is said of the rest."""

import codecs
import json
import os
import pathlib

import numpy as np
import pytest

from tests.image.pictures import corners, encode
from wan_tpu.dataset.entry import Columns, Kind
from wan_tpu.dataset.input_manifest import CAPTION_COLUMNS, PATH_COLUMNS
from wan_tpu.dataset.listing import list_entries
from wan_tpu.errors import InputError

MP4 = b"\0\0\0\x18ftypisom\0\0\2\0isommp42"
"""Listing looks no further."""


def write(folder: pathlib.Path, files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def manifest(folder: pathlib.Path, name: str, content: str | bytes | list, columns=None):
    if isinstance(content, list):
        content = "\n".join(json.dumps(line) for line in content)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list_entries(folder / name, columns=columns)


@pytest.fixture
def clips(tmp_path):
    """Three clips and a picture."""
    write(tmp_path, {"a.mp4": MP4, "b.mp4": MP4, "sub/c.mp4": MP4})
    (tmp_path / "p.png").write_bytes(encode(corners()))
    return tmp_path


def said(listing):
    return [(finding.name, finding.kind) for finding in listing.findings]


def test_a_folder_with_folders(clips):
    write(clips, {"a.txt": "\ufeffA fox \n", "sub/c.mp4.txt": "a cat\nruns"})
    write(clips, {".h.mp4": MP4, ".git/x.mp4": MP4})
    listing = list_entries(clips)
    assert [(e.name, e.kind, e.caption, e.source) for e in listing.entries] == [
        ("a.mp4", Kind.CLIP, "A fox", "a.txt"),
        ("b.mp4", Kind.CLIP, None, ""),
        ("p.png", Kind.PICTURE, None, ""),
        ("sub/c.mp4", Kind.CLIP, "a cat\nruns", "sub/c.mp4.txt"),
    ]
    assert listing.findings == ()
    assert [entry.path for entry in listing.entries][-1] == clips / "sub" / "c.mp4"


def test_content_says_what_a_file_is_and_the_suffix_where_it_says_nothing(tmp_path):
    (tmp_path / "picture.mp4").write_bytes(encode(corners()))
    write(tmp_path, {"text.mp4": "a fox", "clip.dat": MP4, "avi.avi": b"RIFF\0\0\0\0AVI LIST"})
    found = {entry.name: entry.kind for entry in list_entries(tmp_path).entries}
    assert found == {
        "avi.avi": Kind.CLIP,
        "clip.dat": Kind.CLIP,
        "picture.mp4": Kind.PICTURE,
        "text.mp4": Kind.CLIP,
    }


def test_what_is_passed_over_in_a_folder_is_named(clips):
    write(clips, {"b.flv": b"FLV", "notes.md": "x", "list.jsonl": "{}", "f.npz": b"PK"})
    write(clips, {"lone.txt": "x"})
    os.mkfifo(clips / "pipe.mp4")
    (clips / "gone.mp4").symlink_to("nowhere.mp4")
    (clips / "sub" / "loop").symlink_to(clips)
    assert said(list_entries(clips)) == [
        ("b.flv", "format"),
        ("f.npz", "passed-over"),
        ("gone.mp4", "unreadable"),
        ("list.jsonl", "passed-over"),
        ("notes.md", "passed-over"),
        ("pipe.mp4", "unreadable"),
        ("lone.txt", "passed-over"),
    ]


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("grün".encode("latin-1"), "it is not UTF-8: byte 0xfc in line 1"),
        (codecs.BOM_UTF16_LE + "fox".encode("utf-16-le"), "it is UTF-16; save it as UTF-8"),
    ],
)
def test_captions_in_another_encoding(clips, caption, words):
    (clips / "a.txt").write_bytes(caption)
    listing = list_entries(clips)
    (finding,) = listing.findings
    assert (finding.name, finding.kind) == ("a.mp4", "encoding")
    assert words in finding.words
    assert listing.entries[0].caption is None


@pytest.mark.parametrize("path", PATH_COLUMNS)
@pytest.mark.parametrize("caption", CAPTION_COLUMNS)
def test_usual_names_of_fields(clips, path, caption):
    rows = [{path: "a.mp4", caption: " a fox "}, {path: "sub/c.mp4", caption: "x"}]
    listing = manifest(clips, "m.jsonl", rows)
    assert [(e.name, e.caption, e.source) for e in listing.entries] == [
        ("a.mp4", "a fox", "m.jsonl line 1"),
        ("sub/c.mp4", "x", "m.jsonl line 2"),
    ]
    assert listing.findings == ()


CONTENT = {
    "m.jsonl": '\ufeff{"video": "a.mp4", "text": "ä"}\r\n\r\n{"video": "b.mp4", "text": "y"}\r\n',
    "m.json": '[{"path": "a.mp4", "cap": ["ä"]}, {"path": "b.mp4", "cap": "y"}]',
    "m.csv": "\ufeffvideo, prompt ,more\r\na.mp4,ä,1\r\nb.mp4,y,2\r\n",
    "m.tsv": "video\tprompt\na.mp4\tä\nb.mp4\ty\n",
}


@pytest.mark.parametrize("name", CONTENT)
def test_every_format_of_a_manifest(clips, name):
    listing = manifest(clips, name, CONTENT[name])
    assert [(e.name, e.caption) for e in listing.entries] == [("a.mp4", "ä"), ("b.mp4", "y")]
    assert listing.findings == ()
    second = "entry 2" if name == "m.json" else "line 3"
    assert listing.entries[1].source == f"{name} {second}"


def test_fields_of_csv_may_have_commas_and_lines(clips):
    rows = 'path,caption\na.mp4,"a fox, a ""red"" one\nruns"\nb.mp4,y\n'
    listing = manifest(clips, "m.csv", rows)
    assert listing.entries[0].caption == 'a fox, a "red" one\nruns'
    assert [e.source for e in listing.entries] == ["m.csv line 2", "m.csv line 4"]


def test_columns_that_are_named(clips):
    rows = [{"video": "b.mp4", "path": "a.mp4", "caption": "no", "long": "a fox"}]
    columns = Columns.from_text("path=path, caption=long")
    listing = manifest(clips, "m.jsonl", rows, columns)
    assert [(e.name, e.caption) for e in listing.entries] == [("a.mp4", "a fox")]
    (finding,) = manifest(clips, "m.jsonl", rows).findings
    assert finding.words == ("video and path differ; say which is meant: --columns path=video")
    (finding,) = manifest(clips, "m.jsonl", rows, Columns(caption="words", path="path")).findings
    assert "it has no field 'words', only 'video', 'path', 'caption', 'long'" in finding.words


@pytest.mark.parametrize("text", ["", "video", "path=", "path=a,path=b", "file=a", "path=a,"])
def test_columns_are_written_one_way(text):
    with pytest.raises(InputError, match="for example path=video,caption=text"):
        Columns.from_text(text)


BAD_LINES = [
    ("{", "line", "it is not JSON: Expecting property name"),
    ("[1]", "line", "an object with a path and a caption is expected, got [1]"),
    ('{"video": 3, "text": "x"}', "line", "video must be the path of a file, got 3"),
    ('{"text": "x"}', "line", "it has no path: one of video_path, file_name,"),
    ('{"video": "a.mp4", "text": 5}', "line", "text must be a text, or a list of some, got 5"),
    ('{"video": "a\\u0000.mp4", "text": "x"}', "line", "a path cannot have a zero byte"),
    ('{"video": "none.mp4", "text": "x"}', "missing", "m.jsonl line 2: it is not there"),
    ('{"video": "a.mp4/x.mp4", "text": "x"}', "missing", "m.jsonl line 2: it is not there"),
    ('{"video": "sub\\\\c.mp4", "text": "x"}', "missing", "not there; folders are joined by /"),
    ('{"video": "sub", "text": "x"}', "unreadable", "it cannot be read: it is no file"),
    ('{"video": "m.jsonl", "text": "x"}', "not-media", "neither a clip, a picture nor an .npz"),
    ('{"video": "b.mp4", "text": "y"}', "same-line", "stands in m.jsonl line 1, too"),
    ('{"video": "./b.mp4", "text": "y"}', "same-line", "stands in m.jsonl line 1, too"),
    ('{"video": "../%s/a.mp4", "text": "x"}', "outside", "does not move with it"),
    ('{"video": "/%s", "text": "x"}', "missing", "it is not there"),
    ("[" * 100_000, "line", "it is not JSON that can be read"),
    ('{"a": %s}' % ("1" * 5000), "line", "it is not JSON that can be read"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "kind", "words"), BAD_LINES)
def test_a_bad_line_is_named_and_stops_no_other(clips, line, kind, words):
    line = line.replace("%s", clips.name)
    good = '{"video": "b.mp4", "text": "y"}'
    listing = manifest(clips, "m.jsonl", f"{good}\n{line}\n" + good.replace('"y"', '"z"'))
    found = [f for f in listing.findings if f.kind not in ("same-clip", "absolute-path")]
    (finding,) = found
    assert finding.kind == kind
    assert words in finding.words
    captions = [entry.caption for entry in listing.entries]
    assert captions[0] == "y"
    assert captions[-1] == "z"


def test_absolute_paths_are_taken_and_named(clips):
    path = str(clips / "a.mp4")
    listing = manifest(clips, "m.jsonl", [{"video": path, "text": "x"}])
    assert listing.entries[0].path == clips / "a.mp4"
    assert said(listing) == [(path, "absolute-path")]


def test_captions_that_are_missing_and_empty(clips):
    rows = [{"video": "a.mp4"}, {"video": "b.mp4", "text": "  "}, {"video": "p.png", "cap": None}]
    listing = manifest(clips, "m.jsonl", rows)
    assert [e.caption for e in listing.entries] == [None, "", ""]


def test_a_list_of_captions_is_an_entry_each(clips):
    rows = [{"path": "a.mp4", "cap": ["one", "two", "one"]}]
    listing = manifest(clips, "m.jsonl", rows)
    assert [e.caption for e in listing.entries] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.jsonl", "", "names nothing"),
        ("m.csv", "path,caption\n", "names nothing"),
        ("m.json", "{}", "must be a list of objects"),
        ("m.json", '{"a": 1}\n{"a": 2}', "Extra data at column 1; one object a line is .jsonl"),
        ("m.jsonl", "grün".encode("latin-1"), "it is not UTF-8: byte 0xfc in line 1"),
        ("m.jsonl", codecs.BOM_UTF16_BE, "it is UTF-16"),
        ("m.csv", "path,path\na,b\n", "has several columns 'path'"),
        ("m.csv", 'path,caption\na.mp4,"open\n', "line 2: unexpected end of data"),
        ("m.txt", "a.mp4", "is neither a folder nor a manifest, which ends in .jsonl"),
    ],
)
def test_a_manifest_that_cannot_be_read_as_a_whole(clips, name, content, words):
    with pytest.raises(InputError) as caught:
        manifest(clips, name, content)
    assert words in str(caught.value)


def test_rows_of_csv_that_do_not_fit_the_header(clips):
    listing = manifest(clips, "m.csv", "path,caption\na.mp4,a fox, red\nb.mp4\np.png,x\n")
    assert [(f.name, f.words) for f in listing.findings] == [
        ("m.csv line 2", "it has 3 fields and the header 2; a field with commas stands in quotes"),
        ("m.csv line 3", "it has 1 fields and the header 2"),
    ]
    assert [e.name for e in listing.entries] == ["p.png"]


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="neither a folder with clips nor a manifest"):
        list_entries(tmp_path / "none")
    with pytest.raises(InputError, match="columns are those of a manifest"):
        list_entries(tmp_path, columns=Columns(path="x"))


def test_stored_frames_bring_their_prompt_and_rate(tmp_path):
    np.savez(tmp_path / "a.npz", frames=np.zeros((5, 8, 8, 3), np.uint8), prompt="a fox")
    rows = [{"npz": "a.npz"}, {"npz": "a.npz", "prompt": "a cat", "fps": "8"}]
    listing = manifest(tmp_path, "m.jsonl", rows)
    assert [(e.kind, e.caption, e.fps) for e in listing.entries] == [
        (Kind.FRAMES, "a fox", None),
        (Kind.FRAMES, "a cat", 8.0),
    ]
    rows = [{"npz": "a.npz", "prompt": "x", "fps": -1}]
    (finding,) = manifest(tmp_path, "m.jsonl", rows).findings
    assert finding.words == "fps must be frames per second, got -1"
