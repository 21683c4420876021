"""From a folder or a manifest to clips, pictures and stored frames with their captions.

Nothing is decoded: of each file the first bytes are looked at. What is passed over is named.
"""

import os
import pathlib
from collections.abc import Iterator

from wan_tpu.dataset.entry import (
    CAPTION_SUFFIX,
    FRAMES_SUFFIX,
    MANIFEST_SUFFIXES,
    OTHER_MEDIA,
    Columns,
    Entry,
    Kind,
    Listing,
    decode_text,
    kind_of_file,
)
from wan_tpu.dataset.faults import Finding
from wan_tpu.dataset.input_manifest import read_manifest
from wan_tpu.errors import InputError

__all__ = ["Columns", "Entry", "Kind", "Listing", "list_entries"]


def list_entries(path: pathlib.Path, *, columns: Columns | None = None) -> Listing:
    """Lists what there is to learn from.

    A folder holds clips and pictures, also in folders of its own, and beside each a `.txt` with its
    caption; names that begin with a dot are left out. A manifest is JSON lines, a JSON list of
    objects, or CSV or TSV with a header; its paths are relative to it.

    Args:
        path: a folder, or a manifest.
        columns: of a manifest.

    Raises:
        InputError: there is no such folder or manifest, or it cannot be read as a whole.
    """
    path = path.expanduser()
    if path.is_dir():
        if columns is not None:
            raise InputError(f"columns are those of a manifest, and {path} is a folder")
        return _list_folder(path)
    if not path.exists():
        raise InputError(f"{path} is neither a folder with clips nor a manifest: it is not there")
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise InputError(
            f"{path} is neither a folder nor a manifest, which ends in "
            f"{', '.join(MANIFEST_SUFFIXES)}; to read one file, give its folder"
        )
    return read_manifest(path, columns or Columns())


def _list_folder(folder: pathlib.Path) -> Listing:
    entries, findings = [], []
    captions_used, captions = set(), []
    for path, error in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if error is not None:
            findings.append(Finding(name=name, kind="unreadable", words=error))
            continue
        suffix = path.suffix.lower()
        if suffix == CAPTION_SUFFIX:
            captions.append((name, path))
            continue
        try:
            kind = kind_of_file(path)
        except OSError as error:
            words = f"it cannot be read: {error.strerror}"
            findings.append(Finding(name=name, kind="unreadable", words=words))
            continue
        if kind is None or kind is Kind.FRAMES:
            findings.append(_passed_over(name, suffix))
            continue
        beside = _caption_file(path)
        caption = None
        if beside is not None:
            captions_used.add(beside)
            caption, problem = _read_caption(name, beside)
            findings += problem
        source = "" if beside is None else beside.relative_to(folder).as_posix()
        entries.append(Entry(path=path, name=name, caption=caption, kind=kind, source=source))
    for name, path in captions:
        if path not in captions_used:
            words = "no clip or picture of this name is beside it"
            findings.append(Finding(name=name, kind="passed-over", words=words))
    return Listing(path=folder, entries=tuple(entries), findings=tuple(findings))


def _walk(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, str | None]]:
    """Files in the order of their names, and folders that cannot be read with the reason."""
    files: list[tuple[pathlib.Path, str | None]] = []
    seen: set[str] = set()

    def failed(error: OSError) -> None:
        files.append((pathlib.Path(error.filename), f"the folder cannot be read: {error.strerror}"))

    for top, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [(pathlib.Path(top, name), None) for name in names if not name.startswith(".")]
    return iter(sorted(files, key=lambda file: file[0].relative_to(folder).as_posix()))


def _caption_file(path: pathlib.Path) -> pathlib.Path | None:
    """`fox.txt` or `fox.mp4.txt` beside `fox.mp4`."""
    beside = (path.with_suffix(CAPTION_SUFFIX), path.with_name(path.name + CAPTION_SUFFIX))
    return next((file for file in beside if file.is_file()), None)


def _read_caption(name: str, path: pathlib.Path) -> tuple[str | None, list[Finding]]:
    try:
        return decode_text(path.read_bytes()).strip(), []
    except OSError as error:
        words = f"its caption {path.name} cannot be read: {error.strerror}"
        return None, [Finding(name=name, kind="unreadable", words=words)]
    except ValueError as error:
        words = f"its caption {path.name}: {error}"
        return None, [Finding(name=name, kind="encoding", words=words)]


def _passed_over(name: str, suffix: str) -> Finding:
    if suffix in OTHER_MEDIA:
        words = f"{suffix} is not read: convert it, clips to MP4 and pictures to PNG"
        return Finding(name=name, kind="format", words=words)
    if suffix in MANIFEST_SUFFIXES:
        words = "a manifest? Give it instead of the folder, and what it names is taken"
    elif suffix == FRAMES_SUFFIX:
        words = "stored frames have no caption beside them: give the manifest that names them"
    else:
        words = "neither a clip, a picture nor a caption"
    return Finding(name=name, kind="passed-over", words=words)
