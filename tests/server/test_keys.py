"""API keys on disk."""

import stat

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
