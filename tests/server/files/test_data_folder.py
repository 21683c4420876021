"""That the data folder is ours, one server's, and closed to others."""

import contextlib
import json
import pathlib

import pytest

from server.files.data_folder import DataFolder, DataFolderError


def opened(path, **options):
    return contextlib.closing(DataFolder(path, **options))


@pytest.fixture
def clips(tmp_path):
    """A folder of the user's, as many projects have one."""
    folder = tmp_path / "data"
    (folder / "videos" / "holiday2019").mkdir(parents=True)
    (folder / "videos" / "clip1.mp4").write_bytes(b"clip")
    return folder


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_that_was_never_ours_is_refused_and_not_touched(clips):
    before = everything_in(clips)
    with pytest.raises(DataFolderError, match=r"holds other things \(videos\)") as caught:
        DataFolder(clips)
    assert "WAN_TPU_DATA_DIR" in str(caught.value)
    assert "python -m server adopt" in str(caught.value)
    assert everything_in(clips) == before
    with opened(clips, adopt=True):
        assert set(everything_in(clips)) == {*before, "lock"}
    with opened(clips):
        pass


@pytest.mark.parametrize("mark", ["lock", "jobs.sqlite", "wan-tpu.json"])
def test_a_folder_of_an_earlier_release_is_used(clips, mark):
    (clips / mark).write_text('{"folder_id": "0", "database_id": null}')
    with opened(clips):
        pass


@pytest.mark.parametrize("name", ["lost+found", ".gitkeep", ".DS_Store"])
def test_an_empty_disk_is_empty(tmp_path, name):
    (tmp_path / name).touch()
    with opened(tmp_path):
        pass


def test_a_second_server_is_refused_by_any_name(tmp_path):
    folder = tmp_path / "data"
    with opened(folder):
        (tmp_path / "link").symlink_to(folder)
        for name in (folder, tmp_path / "link", tmp_path / "x" / ".." / "data"):
            with pytest.raises(DataFolderError, match="another server uses the folder"):
                DataFolder(name)
    with opened(folder):
        pass


def test_it_knows_its_database(tmp_path):
    with opened(tmp_path) as folder:
        assert folder.mark.database_id is None
        folder.bind("0" * 32)
        mark = folder.mark
    with opened(tmp_path) as folder:
        assert folder.mark == mark
    (tmp_path / "wan-tpu.json").write_text('{"folder_id": "')
    with opened(tmp_path) as folder:
        assert folder.mark.database_id is None


def test_it_is_for_its_user_alone(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir(0o755)
    (folder / "lock").touch()
    with opened(folder) as found:
        found.bind("0" * 32)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "wan-tpu.json").stat().st_mode & 0o777 == 0o600
        assert json.loads((folder / "wan-tpu.json").read_text())["database_id"] == "0" * 32


def circle(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    return tmp_path / "a"


def a_file(tmp_path):
    (tmp_path / "file").touch()
    return tmp_path / "file"


@pytest.mark.parametrize(
    "make",
    [
        a_file,
        circle,
        lambda p: a_file(p) / "data",
        lambda _: "/proc/wan",
        lambda p: p / ("x" * 300),
    ],
)
def test_a_folder_of_no_use_is_said_in_a_line(tmp_path, make):
    with pytest.raises(DataFolderError, match="WAN_TPU_DATA_DIR") as caught:
        DataFolder(pathlib.Path(make(tmp_path)))
    assert "\n" not in str(caught.value)
