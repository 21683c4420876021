"""Adapters of the hub, through its own client over HTTP."""

import json
import subprocess
import sys

import pytest

from tests.adapters.small import STYLES, linears, make_factors, save
from tests.checkpoints.fake_hub import FakeHub, environment_of, serving

CLIENT = """
import json, sys
from wan_tpu.adapters.files import find_files
from wan_tpu.errors import WanTpuError
for name in sys.argv[1:]:
    try:
        print(json.dumps([path.read_bytes()[:8].hex() and path.name for path in find_files(name)]))
    except WanTpuError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters") / "fox.safetensors"
    return save(path, STYLES["B ComfyUI"].tensors(make_factors(linears()[:1]))).read_bytes()


def find(home, address, *names):
    """What a process of its own finds for each name: files, or a message."""
    return ask(home, address, *names)[0]


def ask(home, address, *names):
    """The same, and what it logs."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, *names],
        capture_output=True,
        text=True,
        cwd=home,
        env=environment_of(address, home / "hub"),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_a_repository_of_one_adapter_and_what_the_cache_has_of_it(tmp_path, adapter):
    """The second time the hub cannot be asked; what is here is not waited for."""
    hub = FakeHub("owner/fox", {"fox.safetensors": adapter, "README.md": b"x", "a/b.bin": b"x"})
    with serving(hub) as address:
        assert find(tmp_path, address, "owner/fox") == [["fox.safetensors"]]
    assert hub.fetched() == ["fox.safetensors"]
    found, log = ask(tmp_path, address, "owner/fox", "owner/fox/fox.safetensors")
    assert found == [["fox.safetensors"], ["fox.safetensors"]]
    assert "asking again" not in log


def test_a_repository_of_several(tmp_path, adapter):
    """One has to be named; PEFT's comes with its configuration, a pair is for two experts."""
    names = ("a.safetensors", "b.safetensors", "loras/c.safetensors")
    hub = FakeHub("owner/many", dict.fromkeys(names, adapter))
    asked = ("owner/many", "owner/many/loras/c.safetensors", "owner/many/d.safetensors")
    with serving(hub) as address:
        refused, found, missing = find(tmp_path, address, *asked)
    assert "owner/many has 2 .safetensors files (a.safetensors, b.safetensors)" in refused
    assert "for example owner/many/a.safetensors" in refused
    assert (found, hub.fetched()) == (["c.safetensors"], ["loras/c.safetensors"])
    assert missing == "the hub's owner/many has no file d.safetensors"


def test_pefts_file_comes_with_its_configuration(tmp_path, adapter):
    names = ("adapter_model.safetensors", "adapter_config.json", "checkpoint.safetensors")
    hub = FakeHub("owner/peft", dict.fromkeys(names, adapter))
    with serving(hub) as address:
        assert find(tmp_path, address, "owner/peft") == [["adapter_model.safetensors"]]
    assert hub.fetched() == ["adapter_config.json", "adapter_model.safetensors"]
