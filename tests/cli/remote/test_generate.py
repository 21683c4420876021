"""`wan-tpu remote generate`: what arrives at the server, what comes back, what gets lost."""

import hashlib
import json
import shlex
import signal
import subprocess
import sys

import pytest

from tests.cli.remote.conftest import end, hear, jobs
from tests.cli.remote.lines import LosingLine
from tests.server.pictures import clip, picture
from wan_tpu.pipeline.video_file import read_frames


def test_a_video_comes_here_with_its_story(run, service, tmp_path):
    done = run("remote", "generate", "a fox", "--steps", "3", "--seed", "5", "-o", "fox.mp4",
               env={"WAN_TPU_SERVER": f"{service.url}/v1/"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fox.mp4\n"
    assert read_frames(tmp_path / "fox.mp4").shape == (17, 64, 64, 3)
    story = json.loads((tmp_path / "fox.json").read_text())
    newest = jobs(service)[0]
    assert (story["written_by"], story["video"]) == ("wan-tpu generate", "fox.mp4")
    assert story["remote"] == {"server": service.url, "id": newest["id"]}
    assert (story["request"]["prompt"], story["request"]["seed"]) == ("a fox", 5)
    data = (tmp_path / "fox.mp4").read_bytes()
    assert hashlib.sha256(data).hexdigest() == newest["metadata"]["files"]["video"]["sha256"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fox.json", "fox.mp4"]
    assert f"{newest['id']} accepted" in done.stderr


def test_stages_are_said_as_generate_says_them(run, service):
    done = run("remote", "generate", "slow", "--steps", "6", "--server", service.url)
    lines = [line.partition("] ")[2] for line in done.stderr.splitlines() if line[0] == "["]
    assert lines[0] == "denoise, 6 steps"
    assert lines[-1] == "fetch"


def test_every_option_arrives(remote, service, tmp_path):
    """Of the seed -1 a drawn one, so that a repeated request is the same."""
    (tmp_path / "clip.mp4").write_bytes(clip())
    code, out, err = remote(
        "generate", "a \udcff fox", "--size", "48x32", "--frames", "9", "--fps", "12",
        "--steps", "8", "--guidance-scale", "2.5", "--flow-shift", "4", "--scheduler", "euler",
        "--negative-prompt", "", "--seed", "-1", "--model", "wan-tiny", "--video", "clip.mp4",
        "--strength", "0.75", "--detach",
    )  # fmt: skip
    assert code == 0, err
    video = service.finish({"id": out.strip()})
    assert (video["prompt"], video["size"]) == ("a \ufffd fox", "48x32")
    request = video["metadata"]["request"]
    assert 0 <= request.pop("seed") < 2**32
    assert request == {
        "num_frames": 9, "fps": 12, "num_inference_steps": 8, "guidance_scale": 2.5,
        "flow_shift": 4.0, "scheduler": "euler", "negative_prompt": "", "strength": 0.75,
        "video": f"sha256:{hashlib.sha256(clip()).hexdigest()}",
    }  # fmt: skip


def test_a_picture_is_sent_as_one(remote, tmp_path):
    """wan-tiny takes none, and says which came."""
    (tmp_path / "a.png").write_bytes(picture())
    for option, name in (("--image", "an image"), ("--last-image", "a last image")):
        code, _, err = remote("generate", "x", option, "a.png")
        assert (code, f"not {name}" in err) == (2, True), err


WRONG = {
    "frames": (["--frames", "16"], "13 or 17"),
    "size": (["--size", "big"], "832x480"),
    "steps": (["--steps", "2000"], "between 1 and 1000"),
    "model": (["--model", "sora-2"], "known: wan-tiny"),
    "format": (["-o", "fox.npy"], "write fox.mp4"),
    "picture": (["--image", "none.png"], "--image none.png cannot be read"),
    "two files": (["--image", "fox.json", "--video", "fox.json"], "--image or --video"),
    "detached output": (["--detach", "-o", "fox.mp4"], "wan-tpu remote fetch"),
    "empty prompt": ([], "the prompt is empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_and_no_job(remote, service, tmp_path, name):
    (tmp_path / "fox.json").write_text("{}")
    arguments, words = WRONG[name]
    before = len(jobs(service))
    prompt = " " if name == "empty prompt" else "x"
    code, out, err = remote("generate", prompt, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err
    assert len(jobs(service)) == before
    assert [path.name for path in tmp_path.iterdir()] == ["fox.json"]


LEVELS = "1,0.9375,0.8333,0.625"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--fast"], {"fast": "wan-tiny-4", "num_inference_steps": 4, "guidance_scale": 1.0}),
        (["--fast-preset", "wan-tiny-4"], {"fast": "wan-tiny-4"}),
        (["--sigmas", LEVELS], {"sigmas": [1.0, 0.9375, 0.8333, 0.625], "scheduler": "euler"}),
        (["--sigmas", "1,0.3333333333333333", "--scheduler", "renoise"],
         {"sigmas": [1.0, 1 / 3], "scheduler": "renoise"}),
        (["--step-cache", "easycache:0.05"], {"step_cache": "easycache:0.05"}),
        (["--lora", "fox.safetensors:0.8", "--lora", "fox.safetensors"],
         {"lora": [{"name": "fox.safetensors", "strength": 0.8},
                   {"name": "fox.safetensors", "strength": 1.0}]}),
    ],
)  # fmt: skip
def test_shortcuts_and_adapters_arrive(remote, service, options, expected):
    """Red when an option is taken, and not sent."""
    code, out, err = remote("generate", "x", *options, "--detach")
    assert code == 0, err
    request = service.finish({"id": out.strip()})["metadata"]["request"]
    assert expected.items() <= request.items()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lora", "/etc/passwd"], "unknown adapter '/etc/passwd'; known: fox.safetensors"),
        (["--lora", "bad.safetensors"], "the adapter bad.safetensors cannot be used"),
        (["--fast", "--steps", "20"], "the preset wan-tiny-4 has 4"),
        (["--fast-preset", "lightx2v-a14b-4"], "known: wan-tiny-4"),
        (["--sigmas", "1,2"], "sigmas must be numbers that fall"),
        (["-n", "11"], "n must be a whole number between 1 and 10"),
    ],
)
def test_what_the_server_refuses_is_one_line(remote, service, options, words):
    before = len(jobs(service))
    code, out, err = remote("generate", "x", *options)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err
    assert len(jobs(service)) == before


def test_several_videos_come_one_after_the_other(remote, service, tmp_path):
    """Red when all are written into one file, or only the first is brought."""
    few = ("generate", "x", "--steps", "2")
    code, out, err = remote(*few, "--seed", "4", "-n", "3", "-o", "a.mp4")
    assert code == 0, err
    assert out.split() == ["a-1.mp4", "a-2.mp4", "a-3.mp4"]
    stories = [json.loads((tmp_path / f"a-{i}.json").read_text()) for i in (1, 2, 3)]
    assert [story["request"]["seed"] for story in stories] == [4, 5, 6]
    (tmp_path / "video-2.mp4").write_bytes(b"mine")
    code, out, err = remote("generate", "boom", "--steps", "3", "-n", "2")
    assert (code, out) == (1, ""), err
    assert err.count("failed: engine_error") == 2
    code, out, _ = remote(*few, "-n", "2")
    assert (code, out.split()) == (0, ["video-1.mp4", "video-3.mp4"])
    assert (tmp_path / "video-2.mp4").read_bytes() == b"mine"
    code, out, _ = remote(*few, "-n", "2", "--detach")
    assert {service.finish({"id": each})["status"] for each in out.split()} == {"completed"}


def test_a_story_that_is_not_ours_is_not_replaced(remote, service, tmp_path):
    (tmp_path / "fox.json").write_text('{"mine": 1}')
    before = len(jobs(service))
    code, _, err = remote("generate", "x", "-o", "fox.mp4")
    assert (code, "is not wan-tpu's" in err) == (1, True), err
    assert len(jobs(service)) == before


def test_a_job_that_fails(remote, tmp_path):
    code, out, err = remote("generate", "boom", "--steps", "3")
    assert (code, out) == (1, "")
    assert "failed: engine_error: the engine failed" in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_the_command_loads_no_model_code(service, tmp_path):
    """A laptop that only asks a server waits for neither JAX nor PyTorch."""
    code = "import sys; from wan_tpu.cli.main import main; "
    code += "code = main(sys.argv[1:]); "
    code += "print(code, sorted({'jax', 'torch', 'diffusers', 'server'} & set(sys.modules)))"
    words = ("remote", "generate", "x", "--steps", "2", "--server", service.url)
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path,
        check=False,
    )  # fmt: skip
    assert done.stdout == "video.mp4\n0 []\n", done.stderr
    code = "import sys, wan_tpu.cli.main; print('httpx2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_ctrl_c_leaves_the_job_and_says_how_to_get_it(begin, run, service, tmp_path):
    process = begin("denoise", "generate", "slow", "--steps", "8", "--server", service.url,
                    "-o", "my fox.mp4")  # fmt: skip
    code, out, said = end(process, signal.SIGINT)
    assert (code, out, said.splitlines()[-1]) == (130, "", "wan-tpu: interrupted")
    (command,) = [line for line in said.splitlines() if "to get it: wan-tpu" in line]
    words = shlex.split(command.partition("to get it: wan-tpu ")[2])
    assert words[1:] == ["fetch", jobs(service)[0]["id"], "-o", "my fox.mp4", "--server",
                         service.url]  # fmt: skip
    done = run(*words)
    assert (done.returncode, done.stdout) == (0, "my fox.mp4\n"), done.stderr
    assert read_frames(tmp_path / "my fox.mp4").shape == (17, 64, 64, 3)


def test_a_second_ctrl_c_cancels_it(begin, service, tmp_path):
    process = begin("denoise", "generate", "slow", "--steps", "90", "--server", service.url)
    process.send_signal(signal.SIGINT)
    hear(process, "cancels it there")
    code, _, said = end(process, signal.SIGINT)
    assert (code, "is cancelled" in said) == (130, True), said
    assert service.finish(jobs(service)[0])["error"]["code"] == "cancelled"
    assert not list(tmp_path.iterdir())


def test_sigterm_waits_for_no_second_one(begin, service):
    process = begin("denoise", "generate", "slow", "--steps", "90", "--server", service.url)
    code, _, said = end(process, signal.SIGTERM)
    assert (code, "cancels it" in said, "to get it:" in said) == (130, False, True)
    newest = jobs(service)[0]
    assert newest["status"] == "in_progress"
    service.client.delete(f"/v1/videos/{newest['id']}")


@pytest.fixture
def losing(service):
    """Makes a line to the service that loses one answer."""
    lines = []

    def losing(word, **arguments):
        lines.append(LosingLine(service.url, word, **arguments))
        return lines[-1]

    yield losing
    for line in lines:
        line.close()


def test_a_server_that_is_killed_and_started_again(begin, service, tmp_path):
    """The job is on its disk, and begins once more."""
    before = len(jobs(service))
    process = begin("denoise", "generate", "slow", "--steps", "12", "--server", service.url,
                    "-o", "fox.mp4")  # fmt: skip
    service.kill()
    hear(process, "refused; asks again")
    service.start()
    code, out, said = end(process)
    assert (code, out) == (0, "fox.mp4\n"), said
    assert "answers again" in said
    assert jobs(service)[0]["status"] == "completed"
    assert len(jobs(service)) == before + 1
    assert read_frames(tmp_path / "fox.mp4").shape == (17, 64, 64, 3)


def test_a_server_that_stays_away(begin, service, losing):
    line = losing("nothing")
    process = begin("denoise", "generate", "slow", "--steps", "20", "--server", line.url,
                    "--patience", "2")  # fmt: skip
    line.close()
    code, _, said = end(process)
    service.client.delete(f"/v1/videos/{jobs(service)[0]['id']}")
    assert code == 1
    assert "did not answer for 2 s" in said.splitlines()[-1]
    assert "to get it: wan-tpu remote fetch video_" in said


def test_a_lost_answer_makes_no_second_job(remote, service, losing):
    line = losing("POST /v1/videos")
    before = len(jobs(service))
    code, _, err = remote("generate", "x", "--steps", "2", server=line.url)
    assert (code, line.lost) == (0, 1), err
    assert len(jobs(service)) == before + 1


def test_a_broken_download_goes_on_where_it_was(remote, losing, tmp_path):
    line = losing("/content", after=900)
    code, out, err = remote("generate", "x", "--steps", "2", "-o", "fox.mp4", server=line.url)
    assert (code, out, line.lost) == (0, "fox.mp4\n", 1), err
    (again,) = [request for request in line.requests if "/content" in request][1:]
    assert "bytes=900-" in again
    assert read_frames(tmp_path / "fox.mp4").shape == (17, 64, 64, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fox.json", "fox.mp4"]
