"""Three slices behind two servers of the API: what clients are promised, and who is struck down.

All of it is real but the engines, which do what the prompt says.
"""

import collections
import contextlib
import time

import openai
import pytest

from tests.server.fleet.whole import OWNERS, WholeFleet
from tests.server.pictures import clip, picture
from tests.server.postgres import Postgres, new_database
from tests.server.running import wait_for

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")

SIZE = {"size": "64x64", "seconds": "2"}


def steps(number):
    """That a job takes a fifth of a second each of, if it is slow."""
    return {"size": "64x64", "extra_body": {"num_inference_steps": number, "num_frames": 1}}


@pytest.fixture(scope="module")
def struck():
    """A PostgreSQL that things are done to."""
    with contextlib.closing(Postgres()) as postgres:
        yield postgres


@pytest.fixture(scope="module")
def fleet(temporal, s3, struck, tmp_path_factory):
    with new_database(struck.url) as database, pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("whole")
        given = {"names": "abc", "max_attempts": 2}
        with contextlib.closing(WholeFleet(folder, temporal, s3, database, **given)) as fleet:
            yield fleet


@pytest.fixture
def client(fleet):
    with fleet.client("ann", fleet.urls(), max_retries=0) as client:
        yield client


def finish(fleet, job_id):
    """The row of a job that has ended."""
    return wait_for(lambda: (row := fleet.row(job_id))["state"] in ("completed", "failed") and row)


def wait_made_by(fleet, job_id):
    """The slice that makes a job now."""
    return wait_for(lambda: fleet.state(job_id)[2])


def test_none_is_lost_or_made_twice_and_keys_alternate(fleet):
    """While others have the slices, one key after the other asks for six videos."""
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(fleet.client(each, fleet.urls())) for each in OWNERS]
        busy = [clients[0].videos.create(prompt="slow", **steps(1000)) for _ in fleet.slices]
        for each in busy:
            wait_made_by(fleet, each.id)
        asked = {
            client.videos.create(prompt="quick", **steps(2)).id: owner
            for owner, client in zip(OWNERS, clients, strict=True)
            for _ in range(6)
        }
        wait_for(lambda: fleet.are_waiting(list(asked)))
        for each in busy:
            clients[0].videos.delete(each.id)
        rows = [finish(fleet, job_id) for job_id in asked]
    assert {(row["state"], row["attempts"]) for row in rows} == {("completed", 1)}
    rows.sort(key=lambda row: row["finished_at"])
    first = collections.Counter(asked[row["id"]] for row in rows[:9])
    assert min(first[owner] for owner in OWNERS) >= 2, first
    wait_for(lambda: not fleet.left_over())


def test_the_openai_client_finds_everything_at_each_server(fleet, client):
    made = client.videos.create_and_poll(
        prompt="a picture moves", input_reference=("a.png", picture(), "image/png"), **SIZE
    )
    assert made.status == "completed", made.error
    for variant, magic in (("video", b"ftyp"), ("thumbnail", b"WEBP"), ("spritesheet", b"JFIF")):
        one, other = (
            client.videos.download_content(made.id, variant=variant).read() for _ in fleet.apis
        )
        assert one == other
        assert magic in one[:16]
    others = [
        client.videos.remix(made.id, prompt="again", extra_body={"strength": 0.9}),
        client.videos.edit(prompt="edited", video=clip(), extra_body={"strength": 0.9}),
        client.videos.extend(prompt="longer", video=clip(), seconds="2"),
    ]
    ids = [made.id, *(each.id for each in others)]
    done = [client.videos.poll(each) for each in ids]
    assert {each.status for each in done} == {"completed"}, [each.error for each in done]
    assert done[1].remixed_from_video_id == made.id
    for _ in fleet.apis:
        assert [v.id for v in client.videos.list(limit=3, order="asc") if v.id in ids] == ids
        assert [v.id for v in client.videos.list(limit=3) if v.id in ids] == ids[::-1]
        assert [model.id for model in client.models.list()] == ["wan-tiny-ti2v"]
    for each in ids:
        assert client.videos.delete(each).deleted
        for _ in fleet.apis:
            with pytest.raises(openai.NotFoundError):
                client.videos.retrieve(each)
    wait_for(lambda: not fleet.left_over())


def test_a_slice_that_is_told_to_end_loses_nothing(fleet, client):
    job = client.videos.create(prompt="slow", **steps(10))
    first = wait_made_by(fleet, job.id)
    fleet.slices[first].terminate()
    began = time.monotonic()
    wait_for(lambda: fleet.state(job.id)[2] not in (None, first))
    print(f"elsewhere after {time.monotonic() - began:.2f} s")
    row = finish(fleet, job.id)
    assert (row["state"], row["attempts"]) == ("completed", 1)
    assert fleet.slices[first].process.wait() == 0
    fleet.start_again(fleet.slices[first])
    wait_for(lambda: not fleet.left_over())


def test_a_job_that_kills_its_slice_each_time_harms_no_other(fleet, client):
    with fleet.client("bob", fleet.urls()) as other:
        poison = client.videos.create(prompt="murder", **steps(5))
        others = [other.videos.create(prompt="slow", **steps(3)) for _ in range(6)]
        assert {finish(fleet, each.id)["state"] for each in others} == {"completed"}
        row = finish(fleet, poison.id)
        assert client.videos.retrieve(poison.id).error.code == "interrupted"
    assert (row["state"], row["attempts"]) == ("failed", 2)
    dead = [each for each in fleet.slices.values() if each.process.poll() is not None]
    assert len(dead) == 2
    fleet.start_again(*dead)
    wait_for(lambda: not fleet.left_over())


def test_a_slice_that_stood_still_past_its_lease_changes_nothing(fleet, client):
    job = client.videos.create(prompt="slow", **steps(6))
    name = wait_made_by(fleet, job.id)
    frozen = fleet.slices[name]
    fleet.freeze(name)
    row = finish(fleet, job.id)
    assert (row["state"], row["attempts"]) == ("completed", 2)
    before = client.videos.download_content(job.id).read()
    fleet.thaw(name)
    wait_for(lambda: "nobody wants it" in frozen.log() or "came too late" in frozen.log())
    frozen.wait_ready()
    assert client.videos.download_content(job.id).read() == before
    assert fleet.row(job.id) == row
    wait_for(lambda: not fleet.left_over())


@pytest.mark.parametrize("what", ["an API", "Temporal", "PostgreSQL", "S3"])
def test_what_is_killed_takes_no_job_with_it(fleet, temporal, s3, struck, what):
    """Jobs are asked for and made meanwhile; a client comes again, and is told of no job twice."""
    with fleet.client("eve", fleet.urls(), max_retries=20) as client:

        def ask(name, number):
            header = {"Idempotency-Key": f"{what} {name}"}
            return client.videos.create(prompt="slow", extra_headers=header, **steps(number)).id

        running = [ask(f"before {n}", 6) for n in range(3)]
        for each in running:
            wait_made_by(fleet, each)
        match what:
            case "an API":
                fleet.apis[0].kill()
                later = [ask("meanwhile", 2)]
                fleet.start_again(fleet.apis[0])
            case "Temporal":
                temporal.kill()
                later = [ask("meanwhile", 2)]
                temporal.start()
            case "PostgreSQL":
                struck.strike()
                struck.start()
                later = []
            case "S3":
                s3.kill()
                later = [ask("meanwhile", 2)]
                s3.start()
        asked = [*running, *later]
    with fleet.client("eve", fleet.urls(), max_retries=20) as client:
        again = client.videos.create(
            prompt="slow", extra_headers={"Idempotency-Key": f"{what} before 0"}, **steps(6)
        )
        assert again.id == asked[0]
        assert {finish(fleet, each)["state"] for each in asked} == {"completed"}
        for each in asked:
            assert b"ftyp" in client.videos.download_content(each).read()[:16]
    wait_for(lambda: not fleet.left_over())


def test_nothing_of_that_was_a_surprise(fleet):
    """Red when one of us logs an exception: what may happen is said in one line, and once."""
    for server in (*fleet.apis, *fleet.slices.values()):
        assert "Traceback" not in server.log(), server.data_dir.name
        assert 'message="left for later: the database' not in server.log(), server.data_dir.name
