"""Shards, made and put together, are what `prepare` makes of the same clips, bit for bit."""

import asyncio
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import jax
import pytest
from temporalio.client import Client

from tests.cli.conftest import COMMAND, environment, refused, run_here
from tests.dataset.test_prepare import OPTIONS, contents, write_clip
from tests.server.running import wait_for
from wan_tpu.checkpoints.models import open_model
from wan_tpu.dataset.cache import Cache
from wan_tpu.dataset.encode import load_encoders
from wan_tpu.dataset.fleet import command
from wan_tpu.dataset.fleet.clips import ClipsNotHere, bring, check_there, list_bucket, list_folder
from wan_tpu.dataset.fleet.command import make_plan
from wan_tpu.dataset.fleet.order import cut
from wan_tpu.dataset.fleet.result import assemble, fetch, finish, read_record, shard_key
from wan_tpu.dataset.fleet.shard import ShardMaker, record_bytes, unpack
from wan_tpu.dataset.fleet.workflow import Prepare
from wan_tpu.dataset.loader import open_dataset
from wan_tpu.dataset.manifest import read_manifest
from wan_tpu.dataset.prepare import prepare
from wan_tpu.errors import InputError
from wan_tpu.fleet.address import parse_fleet
from wan_tpu.pipeline.progress import Watch
from wan_tpu.storage.bucket import open_bucket

__all__ = ["environment", "refused", "run_here"]  # fixtures

ROOT = pathlib.Path(__file__).parents[3]
OPTIONS = dataclasses.replace(OPTIONS, dtype="float32")


@pytest.fixture(scope="module")
def model():
    return open_model("wan-tiny")


@pytest.fixture(scope="module")
def loaded():
    """Encoders, loaded once; compiled once as well."""
    made = {}

    def load(description, components, **choices):
        if tuple(components) not in made:
            made[tuple(components)] = load_encoders(description, components, **choices)
        return made[tuple(components)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wan_tpu.dataset.prepare.load_encoders", load)
        yield load


@pytest.fixture(scope="module")
def expected(clips, model, loaded, tmp_path_factory):
    """What one process makes of the clips."""
    folder = tmp_path_factory.mktemp("expected")
    prepare(clips, folder, model, OPTIONS, devices=jax.devices()[:1])
    return folder


@pytest.fixture
def maker(model, loaded, tmp_path):
    return new_maker(model, loaded, tmp_path / "scratch")


def new_maker(model, loaded, folder):
    return ShardMaker(model, folder, devices=jax.devices()[:1], workers=0, load=loaded)


async def make_all(plan, maker, bucket):
    """Makes every shard of clips that are here; returns their keys."""
    keys = []
    for number in range(len(plan.shards)):
        entries = plan.entries(number)
        key = maker.key(entries, plan.options)
        archive = maker.make(entries, plan.options, Watch())
        assert await bucket.put(shard_key(key), archive, create=True)
        keys.append(key)
    return keys


@pytest.fixture(scope="module")
def made(clips, expected, model, loaded, tmp_path_factory):
    """The bucket, the plan and the keys of all shards of the clips, two clips each."""
    folder = tmp_path_factory.mktemp("bucket")

    async def work():
        bucket = open_bucket(str(folder))
        plan = await make_plan(str(clips), str(folder), model, OPTIONS)
        plan = cut(plan, 2, None)
        maker = new_maker(model, loaded, tmp_path_factory.mktemp("maker"))
        keys = await make_all(plan, maker, bucket)
        await finish(bucket, plan, keys, model)
        return plan, keys

    return folder, *asyncio.run(work())


def test_it_is_what_one_process_makes(made, expected, model, tmp_path):
    """Also where a clip has another one's bytes, which only a look at all shards shows."""
    bucket = open_bucket(str(made[0]))
    asyncio.run(fetch(bucket, tmp_path / "data"))
    assert contents(tmp_path / "data") == contents(expected)
    text = (expected / "dataset.json").read_text()
    assert (tmp_path / "data" / "dataset.json").read_text() == text
    kinds = {each["name"]: each["kind"] for each in json.loads(text)["refused"]}
    assert kinds == {"2.mp4": "truncated", "4.mp4": "no-caption", "5.mp4": "duplicate"}
    assert len(made[2]) == 3
    batch = next(open_dataset(tmp_path / "data", model).batches(2, seed=0))
    assert batch.latents.shape[0] == 2


def test_the_same_shard_has_the_same_bytes(made, maker):
    """Red when a shard that is made again would differ from the one that is there."""
    folder, plan, keys = made
    assert maker.key(plan.entries(0), OPTIONS) == keys[0]
    archive = maker.make(plan.entries(0), OPTIONS, Watch())
    assert archive.read_bytes() == (folder / shard_key(keys[0])).read_bytes()


def test_what_makes_the_key(made, maker, clips):
    plan, keys = made[1:]
    entries = plan.entries(0)
    changed = [
        maker.key(entries[::-1], OPTIONS),
        maker.key([dataclasses.replace(e, caption="other") for e in entries], OPTIONS),
        maker.key([dataclasses.replace(e, path=clips / "3.mp4") for e in entries], OPTIONS),
        maker.key(entries, dataclasses.replace(OPTIONS, vae_dtype="bfloat16")),
        maker.key(entries, dataclasses.replace(OPTIONS, fps=15.0)),
        maker.key(entries, dataclasses.replace(OPTIONS, lengths=(9,))),
    ]
    assert len({keys[0], *changed}) == 7


def test_fetched_again_nothing_comes_and_what_is_damaged_comes_anew(made, tmp_path, monkeypatch):
    bucket, data = open_bucket(str(made[0])), tmp_path / "data"
    asyncio.run(fetch(bucket, data))
    before = contents(data)
    _, _, path = next(Cache(data).files())
    path.write_bytes(path.read_bytes()[:-3])
    seen = []
    asyncio.run(fetch(bucket, data, lambda done, total: seen.append((done, total))))
    assert contents(data) == before
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr(
        "wan_tpu.dataset.fleet.result.unpack", lambda *_: pytest.fail("all of it was there")
    )
    asyncio.run(fetch(bucket, data))


def test_what_cannot_be_fetched(made, tmp_path):
    empty = open_bucket(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="has no finished dataset; wan-tpu dataset prepare --fl"):
        asyncio.run(fetch(empty, tmp_path / "data"))
    copy = shutil.copytree(made[0], tmp_path / "copy")
    for path in (copy / "shards").iterdir():
        path.write_bytes(path.read_bytes()[:-12_000])
    with pytest.raises(InputError, match="is damaged"):
        asyncio.run(fetch(open_bucket(str(copy)), tmp_path / "data"))
    with pytest.raises(InputError, match="not prepared to its end"):
        read_manifest(tmp_path / "data")
    shutil.rmtree(copy / "shards")
    with pytest.raises(InputError, match=r"has no shards/\w+\.tar any more"):
        asyncio.run(fetch(open_bucket(str(copy)), tmp_path / "data"))


def test_an_archive_that_is_none_of_ours(tmp_path):
    for data in (b"", b"x" * 512, (b"evil.txt" + bytes(504))):
        with pytest.raises(InputError, match="a shard is damaged"):
            record_bytes(data)
    (tmp_path / "no.tar").write_bytes(b"x" * 2000)
    with pytest.raises(InputError, match="a shard is damaged"):
        unpack(tmp_path / "no.tar", Cache(tmp_path), set())


def test_shards_of_different_encoders_are_not_joined(made, model):
    folder, plan, keys = made

    async def read():
        return [await read_record(open_bucket(str(folder)), key) for key in keys]

    records = asyncio.run(read())
    other = dataclasses.replace(records[1].made, dtype="bfloat16")
    records[1] = dataclasses.replace(records[1], made=other)
    with pytest.raises(InputError, match="not made by the same encoders: the workers differ"):
        assemble(plan, records, model)


def test_clips_of_a_bucket_are_listed_as_those_of_a_folder(clips, tmp_path):
    """Of a clip its first bytes are read; brought, it is whole."""
    bucket = open_bucket(str(clips))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    url, found, there = asyncio.run(list_bucket(str(clips), None, scratch))
    listing, local = list_folder(clips, None)
    assert url == str(clips)
    same = [dataclasses.replace(each.entry, path=clips / each.entry.path) for each in there]
    assert same == [each.entry for each in local]
    assert found.findings == listing.findings
    assert [each.state[0] for each in there] == [each.state[0] for each in local]
    assert max(path.stat().st_size for path in scratch.glob("*.mp4")) <= 64
    entries = asyncio.run(bring(bucket, [each.entry for each in there], tmp_path / "whole"))
    assert [e.path.read_bytes() for e in entries] == [e.path.read_bytes() for e in same]
    gone = dataclasses.replace(there[0].entry, path=there[0].entry.path.with_name("gone.mp4"))
    with pytest.raises(InputError, match=r"gone\.mp4 has gone from .* lists the clips anew"):
        asyncio.run(bring(bucket, [gone], tmp_path / "whole"))


def test_a_manifest_in_a_bucket(clips, tmp_path):
    folder, scratch = shutil.copytree(clips, tmp_path / "clips"), tmp_path / "scratch"
    scratch.mkdir()
    (folder / "train.jsonl").write_text('{"path": "1.mp4", "caption": "words"}\n')
    url, _, there = asyncio.run(list_bucket(f"{folder}/train.jsonl", None, scratch))
    assert (url, [str(each.entry.path) for each in there]) == (str(folder), ["1.mp4"])
    (folder / "train.jsonl").write_text(f'{{"path": "{clips}/1.mp4", "caption": "words"}}\n')
    with pytest.raises(InputError, match="which is not in"):
        asyncio.run(list_bucket(f"{folder}/train.jsonl", None, scratch))
    with pytest.raises(InputError, match=r"no\.jsonl is not there"):
        asyncio.run(list_bucket(f"{folder}/no.jsonl", None, scratch))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no object"):
        asyncio.run(list_bucket(f"{tmp_path}/empty", None, scratch))


def test_files_are_held_against_what_the_command_saw(tmp_path):
    """A worker that does not see the folder leaves; a clip that was changed is the user's."""
    for name in ("a", "b"):
        write_clip(tmp_path / f"{name}.mp4", name, seed=1)
    _, clips = list_folder(tmp_path, None)
    check_there(clips)
    (tmp_path / "a.mp4").write_bytes(b"other")
    with pytest.raises(InputError, match=r"a\.mp4 has changed or gone since it was listed"):
        check_there(clips)
    (tmp_path / "a.mp4").unlink()
    (tmp_path / "b.mp4").unlink()
    with pytest.raises(ClipsNotHere, match="not on this machine"):
        check_there(clips)


# --- processes ------------------------------------------------------------------------------------

SETTINGS = ("--model", "wan-tiny", "--size", "48x32", "--frames", "5", "--fps", "16",
            "--sampling", "chunks", "--dtype", "float32")  # fmt: skip
WORKER = ("dataset", "worker", "--model", "wan-tiny", "--host-devices", "1", "--workers", "1")


@pytest.fixture
def fleet(temporal):
    return temporal.new_fleet()


@pytest.fixture
def start(environment, tmp_path):
    """Starts commands; none outlives the test."""
    started = []

    def start(*words):
        path = tmp_path / f"{len(started)}.log"
        with path.open("w") as log:
            process = subprocess.Popen(
                [*COMMAND, *words], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        process.log = path.read_text
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


async def pid_of_busy(fleet):
    """The process that has taken a shard, once one has."""
    address = parse_fleet(fleet)
    client = await Client.connect(address.target, namespace=address.namespace)
    while True:
        async for found in client.list_workflows("WorkflowType = 'Prepare'"):
            described = await client.get_workflow_handle(found.id).describe()
            for each in described.raw_description.pending_activities:
                if each.last_worker_identity:
                    return int(each.last_worker_identity.rpartition("-")[2])
        await asyncio.sleep(0.1)


def test_a_worker_that_is_killed_costs_its_shard_alone(
    clips, expected, fleet, start, run_here, tmp_path, monkeypatch
):
    """Two processes; the one that has begun a shard is killed, and the other one makes it, too."""
    monkeypatch.setattr(command, "Prepare", functools.partial(Prepare, heartbeat_seconds=5.0))
    workers = {worker.pid: worker for worker in (start(*WORKER, "--fleet", fleet) for _ in "12")}
    killed = []

    def strike():
        pid = asyncio.run(pid_of_busy(fleet))
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    striking = threading.Thread(target=strike)
    striking.start()
    words = ("dataset", "prepare", str(clips), "-o", str(tmp_path / "bucket"), *SETTINGS)
    words += ("--fleet", fleet, "--shard-clips", "2")
    code, out, _ = run_here(*words)
    striking.join()
    assert code == 0, [worker.log() for worker in workers.values()]
    lines = out.splitlines()
    assert lines[:3] == [
        "size                     samples", "48x32, 5 frames                3",
        "refused                        3",
    ]  # fmt: skip
    assert lines[-2].endswith("bucket for wan-tiny: 3 shards")
    assert "  2.mp4: truncated: " in out
    assert len(list((tmp_path / "bucket" / "shards").iterdir())) == 3

    assert run_here("dataset", "fetch", str(tmp_path / "bucket"), "data")[0] == 0
    assert contents(tmp_path / "data") == contents(expected)
    assert read_manifest(tmp_path / "data") == read_manifest(expected)

    (other,) = (worker for pid, worker in workers.items() if pid not in killed)
    other.terminate()
    assert other.wait(60) == 0
    assert other.log().endswith("has left; a shard that was under way was given back\n")
    code, out, err = run_here(*words, "--json")  # nobody is there to do anything
    assert (code, err) == (0, "")
    assert json.loads(out)["samples"] == 3


def test_the_command_ends_and_the_work_goes_on_until_it_is_stopped(
    clips, fleet, start, run_here, tmp_path
):
    words = ("dataset", "prepare", str(clips), "-o", str(tmp_path / "bucket"), *SETTINGS)
    process = start(*words, "--fleet", fleet)
    wait_for(lambda: "no worker prepares for wan-tiny; start some: wan-tpu d" in process.log())
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert "the same command watches it, with --stop it ends" in process.log()
    assert process.log().endswith("wan-tpu: interrupted\n")
    stop = (*words, "--fleet", fleet, "--stop")
    wait_for(lambda: run_here(*stop)[0] == 0)  # the list of workflows is a moment behind
    assert list((tmp_path / "bucket").iterdir()) == [tmp_path / "bucket" / "plans"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--stop",), "--stop is a fleet's: --fleet temporal://HOST:PORT/NAMESPACE"),
        (("--shard-clips", "3"), "--shard-clips is a fleet's"),
        (("--fleet", "here:1"), "--fleet is temporal://HOST:PORT/NAMESPACE, for example"),
        (("--fleet", "temporal://h:1/ns", "--prune"), "--prune is a worker's own"),
        (("--fleet", "temporal://h:1/ns", "--fleet-key-file", "k"), "--fleet-key-file go together"),
        (
            ("--fleet", "temporal://h:1/ns", "-o", "ftp://b"),
            "--output begins with ftp://; it is s3",
        ),
    ],
)
def test_a_wrong_command_is_one_line(clips, refused, options, line):
    words = ("dataset", "prepare", str(clips), "-o", "data", *SETTINGS)
    assert line in refused(*words, *options)


def test_without_a_fleet_its_packages_are_not_loaded(tmp_path):
    code = (
        "import sys; from wan_tpu.cli.main import main; main(['dataset', 'prepare', 'no', '-o', "
        "'x']); print([m for m in ('temporalio', 'obstore', 'google.cloud') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "no is not there" in done.stderr
