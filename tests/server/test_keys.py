"""API keys on disk, and the commands that keep them."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from server.keys import Keys, KeysError, add_key, read_keys, remove_key


def test_a_key_is_found_by_its_name_and_only_its_hash_is_kept(tmp_path):
    path = tmp_path / "keys"
    ours, theirs = add_key(path, "ours"), add_key(path, "theirs")
    keys = Keys(path)
    assert (keys.find(ours), keys.find(theirs)) == ("ours", "theirs")
    assert keys.find(ours + "x") is keys.find(ours[:-1]) is keys.find("") is None
    assert ours not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_hash_itself_opens_nothing(tmp_path):
    path = tmp_path / "keys"
    add_key(path, "ours")
    assert Keys(path).find(read_keys(path)[0].hash) is None


def test_a_running_server_notices_what_changed(tmp_path):
    path = tmp_path / "keys"
    old = add_key(path, "old")
    keys = Keys(path)
    new = add_key(path, "new")
    remove_key(path, "old")
    keys.refresh()
    assert (keys.find(old), keys.find(new)) == (None, "new")


def test_names_are_checked(tmp_path):
    path = tmp_path / "keys"
    add_key(path, "ours")
    with pytest.raises(KeysError, match="already"):
        add_key(path, "ours")
    with pytest.raises(KeysError, match="1 to 64 letters"):
        add_key(path, "two words")
    with pytest.raises(KeysError, match="no key named 'theirs'; it has: ours"):
        remove_key(path, "theirs")


@pytest.mark.parametrize("text", ["wt-plaintext-key\n", "a b c d\n", "name nothash day\n"])
def test_what_is_not_a_file_of_keys_is_refused(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(KeysError, match="key 1 in"):
        Keys(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(KeysError, match="cannot read"):
        Keys(tmp_path / "keys")


def run_keys(*arguments, stdout=subprocess.PIPE, **options):
    """`python -m server keys ...`; never a traceback, never more than one line for an error."""
    done = subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        **options,
    )
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.returncode in (1, 2)
        assert done.returncode == 2 or len(done.stderr.splitlines()) == 1, done.stderr
    return done


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "add", "ada", "--file", "keys"),
        ("keys", "--file", "keys", "add", "ada"),
        ("keys", "add", "--file", "keys", "ada"),
    ],
)
def test_the_file_is_named_before_or_after(tmp_path, arguments):
    done = run_keys(*arguments, cwd=tmp_path)
    assert Keys(tmp_path / "keys").find(done.stdout.strip()) == "ada"
    listed = run_keys("keys", "list", "--file", "keys", cwd=tmp_path).stdout
    assert listed.split() == ["ada", read_keys(tmp_path / "keys")[0].day]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("keys", "add", "ada", "--file", "/nope/keys"), 1, "No such file or directory"),
        (("keys", "add", "ada", "--file", "/etc"), 1, "directory"),
        (("keys", "add", "ada", "--file", "/proc/keys/new"), 1, "cannot"),
        (("keys", "add", "ada", "--file", "x" * 300), 1, "File name too long"),
        (("keys", "add", "ada", "--file", "loop"), 1, "cannot read"),
        (("keys", "add", "two words", "--file", "keys"), 1, "1 to 64 letters"),
        (("keys", "list", "--file", "binary"), 1, "cannot read"),
        (("keys", "list", "--file", "none"), 1, "cannot read"),
        (("keys", "remove", "ada", "--file", "none"), 1, "cannot read"),
        (("keys", "rotate", "ada", "--file", "none"), 1, "no key named 'ada' to rotate"),
        (("keys", "list"), 2, "WAN_TPU_API_KEYS_FILE"),
        (("keys", "add", "--file", "keys"), 2, "NAME"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, arguments, code, words):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "loop").symlink_to("loop")
    done = run_keys(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_a_key_that_could_not_be_shown_is_not_kept(tmp_path):
    run_keys("keys", "add", "ada", "--file", "keys", cwd=tmp_path)
    with open("/dev/full", "w") as full:
        for arguments in (("add", "bob"), ("rotate", "ada"), ("list",)):
            done = run_keys("keys", *arguments, "--file", "keys", stdout=full, cwd=tmp_path)
            assert "cannot write to standard output" in done.stderr
    assert [entry.name for entry in read_keys(tmp_path / "keys")] == ["ada"]
    script = f"{sys.executable} -m server keys add eve --file {tmp_path / 'keys'} >&-"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert [entry.name for entry in read_keys(tmp_path / "keys")] == ["ada"]


def test_a_key_is_rotated_without_a_gap(tmp_path):
    path = tmp_path / "keys"
    old, other = add_key(path, "ada"), add_key(path, "bob")
    new = add_key(path, "ada", second=True)
    keys = Keys(path)
    assert [keys.find(key) for key in (old, new, other)] == ["ada", "ada", "bob"]
    with pytest.raises(KeysError, match="2 keys already"):
        add_key(path, "ada", second=True)
    remove_key(path, "ada", older=True)
    keys.refresh()
    assert [keys.find(key) for key in (old, new, other)] == [None, "ada", "bob"]
    with pytest.raises(KeysError, match="one key only"):
        remove_key(path, "ada", older=True)
    add_key(path, "ada", second=True)
    remove_key(path, "ada")
    assert [entry.name for entry in read_keys(path)] == ["bob"]


def test_through_a_symlink_the_file_behind_it_is_changed(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "keys", tmp_path / "keys"
    link.symlink_to("real/keys")
    keys = {name: add_key(link, name) for name in ("ada", "bob")}
    remove_key(link, "bob")
    assert link.is_symlink()
    assert Keys(target).find(keys["ada"]) == "ada"
    assert Keys(target).find(keys["bob"]) is None


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660])
def test_owner_and_mode_stay(tmp_path, mode):
    """Or the server could no longer read what root has changed."""
    path = tmp_path / "keys"
    add_key(path, "ada")
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    before = path.stat()
    add_key(path, "bob")
    remove_key(path, "ada")
    after = path.stat()
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert stat.S_IMODE(after.st_mode) == mode
    assert os.listdir(tmp_path) == ["keys"]


def test_changes_at_the_same_time_lose_nothing(tmp_path):
    names = [f"key-{number}" for number in range(8)]
    code = "import pathlib, sys; from server.keys import add_key, remove_key\n"
    code += "for name in sys.argv[2:]: add_key(pathlib.Path(sys.argv[1]), name)"
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "keys"), f"{n}-a", f"{n}-b"])
        for n in names
    ]
    assert [process.wait() for process in running] == [0] * len(names)
    kept = {entry.name for entry in read_keys(tmp_path / "keys")}
    assert kept == {f"{name}-{end}" for name in names for end in "ab"}


@pytest.mark.parametrize("how", ["gone", "not a file of keys", "a folder"])
def test_a_file_that_cannot_be_read_opens_nothing(tmp_path, how):
    path = tmp_path / "keys"
    key = add_key(path, "ada")
    keys = Keys(path)
    kept = path.read_text()
    path.unlink()
    if how == "not a file of keys":
        path.write_text("nonsense\n")
    elif how == "a folder":
        path.mkdir()
    assert keys.refresh()
    assert keys.find(key) is None
    assert keys.problem is not None
    assert not keys.refresh()
    if how == "a folder":
        path.rmdir()
    path.write_text(kept)
    assert keys.refresh()
    assert (keys.find(key), keys.problem) == ("ada", None)


def test_a_key_that_takes_anothers_place_within_a_moment_is_noticed(tmp_path):
    """Same size, and on a coarse clock the same time."""
    path = tmp_path / "keys"
    old = add_key(path, "ada")
    keys, status = Keys(path), path.stat()
    remove_key(path, "ada")
    new = add_key(path, "ada")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    keys.refresh()
    assert (keys.find(old), keys.find(new)) == (None, "ada")
