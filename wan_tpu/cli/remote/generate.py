"""make a video from a prompt on a server, and bring it here

Ctrl-C leaves the job on the server, and says how to get its video later; a second one, while it
waits for that, cancels it there. A server that is started again meanwhile, and a connection that is
lost, are waited for. --detach prints the id of the job and waits for nothing.
"""

import argparse
import itertools
import json
import pathlib
import re
import shlex
import signal
import time
import uuid

from wan_tpu.cli.generate import MADE_FROM, add_video_arguments, read_request
from wan_tpu.cli.interruptible import ended_by_signals
from wan_tpu.cli.media_files import MediaFiles, add_media_arguments, read_media_files
from wan_tpu.cli.options import add_few_steps_arguments, read_few_steps
from wan_tpu.cli.output import DEFAULT_OUTPUT, check_output, print_path, say_metadata
from wan_tpu.cli.progress import ProgressBars, say
from wan_tpu.cli.remote.answers import AwayError, NotCancellableError, RemoteError
from wan_tpu.cli.remote.download import download
from wan_tpu.cli.remote.follow import follow
from wan_tpu.cli.remote.options import add_remote_arguments, open_server
from wan_tpu.cli.remote.server import RemoteServer
from wan_tpu.cli.remote.video import RemoteVideo
from wan_tpu.cli.streams import write_data
from wan_tpu.errors import InputError
from wan_tpu.pipeline.side_file import side_file_of, write_side_file
from wan_tpu.request import VideoRequest
from wan_tpu.text.prompt import check_prompt

EXIT_FAILED = 1
SECONDS_TO_CANCEL = 3.0

FIELDS = (
    "negative_prompt",
    "num_frames",
    "fps",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_2",
    "flow_shift",
    "scheduler",
    "strength",
    "seed",
    "fast",
    "step_cache",
)
"""Of a request and of the API, by the same names."""

FILE_FIELDS = {"image": "input_reference", "video": "input_reference", "last_image": "last_image"}
"""The field of the API that takes a picture or clip, by its role."""


SAID = {"steps", "seconds", "model", "layout", "attention", "vae", "dtype", "vae_dtype"}
"""Of the metadata, what the lines at the end tell."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu remote generate`."""
    parser.add_argument("prompt", help="what the video shows")
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help=f".mp4; replaced where it is there (default: {DEFAULT_OUTPUT}, or the first of "
        "video-2.mp4, video-3.mp4, ... that is free)",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="ID",
        help="of those that wan-tpu remote models lists (default: the only one)",
    )  # fmt: skip
    parser.add_argument("--detach", action="store_true", help="print the job's id, and leave")
    video = add_video_arguments(parser)
    add_few_steps_arguments(video)
    add_remote_arguments(video)
    add_media_arguments(parser.add_argument_group(MADE_FROM))


def run(parsed: argparse.Namespace) -> int:
    """Creates, follows, brings; what is wrong with the request is said before anything is sent."""
    if parsed.detach and parsed.output is not None:
        raise InputError(
            "--detach waits for no video that -o could name; wan-tpu remote fetch does"
        )
    check_prompt(parsed.prompt)
    files = read_media_files(parsed)
    fields = read_fields(parsed, files)
    contents = {FILE_FIELDS[role]: files.media[digest] for role, digest in files.digests.items()}
    outputs = [] if parsed.detach else check_video_outputs(parsed.output, parsed.n)
    with open_server(parsed) as server, ended_by_signals():
        try:
            videos = server.create(fields, contents, key=f"wan-tpu-{uuid.uuid4()}")
        except KeyboardInterrupt:
            say("the server had not answered; wan-tpu remote list says whether it took the job")
            raise
        if len(videos) < parsed.n:
            say(f"{server.address} knows no -n: it makes {len(videos)} instead of {parsed.n}")
        if parsed.detach:
            write_data("".join(f"{video.id}\n" for video in videos))
            return 0
        for video in videos:
            say(f"{video.id} accepted by {server.address}")
        return _bring_all(server, list(zip(videos, outputs, strict=False)), parsed)


def _bring_all(
    server: RemoteServer, left: list[tuple[RemoteVideo, pathlib.Path]], parsed: argparse.Namespace
) -> int:
    """Brings one video after the other, and prints the path of each.

    Raises:
        InputError, RemoteError: the only one failed, or the server stays away.
    """
    is_alone, failed = len(left) == 1, 0
    while left:
        video, output = left[0]
        try:
            bring(server, video, output)
            print_path(output)
        except AwayError:
            for each in left:
                say(_how_to_get(*each, parsed))
            raise
        except KeyboardInterrupt as interrupt:
            _leave(server, left, parsed, by_hand=not interrupt.args)
            raise
        except (InputError, RemoteError) as error:
            if is_alone:
                raise
            say(str(error))
            failed += 1
        left = left[1:]
    return EXIT_FAILED if failed else 0


def check_video_outputs(given: str | None, number: int) -> list[pathlib.Path]:
    """Where the server's videos go: of several, `fox.mp4` means `fox-1.mp4`, `fox-2.mp4`, ...

    Args:
        given: the file that was named; None for those that are free.
        number: of videos.

    Raises:
        InputError: another suffix than the server's files have; OutputError: something is in the
            way.
    """
    path = check_video_output(given)
    if number == 1:
        return [path]
    numbered = (path.with_stem(f"{path.stem}-{index}") for index in itertools.count(1))
    if given is None:
        path = pathlib.Path(DEFAULT_OUTPUT)
        every = (path.with_stem(f"{path.stem}-{index}") for index in itertools.count(1))
        numbered = (each for each in every if not (each.exists() or side_file_of(each).exists()))
    return [check_output(str(each), None) for each in itertools.islice(numbered, number)]


def check_video_output(given: str | None) -> pathlib.Path:
    """Where the server's video goes.

    Raises:
        InputError: another suffix than the server's files have; OutputError: something is in the
            way.
    """
    if given is not None and pathlib.Path(given).suffix.lower() != ".mp4":
        instead = pathlib.Path(given).stem or "video"
        raise InputError(f"a server makes .mp4, got {given!r}; write {instead}.mp4")
    return check_output(given, None)


def read_fields(parsed: argparse.Namespace, files: MediaFiles) -> dict[str, object]:
    """What is said of the video, by the names of the API; what is left open is the server's.

    Raises:
        InputError: a value out of range, or two files for one field.
    """
    if "image" in files.digests and "video" in files.digests:
        raise InputError("a server takes --image or --video, and not both")
    request = read_request(parsed, **read_few_steps(parsed), step_cache=parsed.step_cache)
    fields: dict[str, object] = {"prompt": _utf8(request.prompt)}
    if parsed.model is not None:
        fields["model"] = _utf8(parsed.model)
    if request.width is not None:
        fields["size"] = f"{request.width}x{request.height}"
    if request.sigmas is not None:
        fields["sigmas"] = ",".join(map(repr, request.sigmas))
    if request.fast is True:
        fields["fast"] = "true"
    if parsed.lora:
        fields["lora"] = json.dumps([_utf8(text) for text in parsed.lora])
    if parsed.n > 1:
        fields["n"] = parsed.n
    return _said(request) | fields


def _said(request: VideoRequest) -> dict[str, object]:
    given = ((name, getattr(request, name)) for name in FIELDS)
    return {
        name: _utf8(value) if isinstance(value, str) else value
        for name, value in given
        if value is not None
    }


def _utf8(text: str) -> str:
    """Text from a command line may hold half of a surrogate pair, which has no UTF-8."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def bring(server: RemoteServer, video: RemoteVideo, output: pathlib.Path) -> None:
    """Waits for a video, and writes it with the file beside it.

    Raises:
        InputError, RemoteError: it failed, or the server stays away.
        OutputError: it cannot be written.
    """
    with ProgressBars() as bars:
        video = follow(server, video, bars)
        download(server, video, output, bars)
    metadata = {"model": video.text("model"), **video.metadata}
    request = metadata.get("request")
    told = {"prompt": video.text("prompt"), "size": video.text("size")}
    metadata["request"] = told | (request if isinstance(request, dict) else {})
    metadata["remote"] = {"server": server.address, "id": video.id}
    write_side_file(output, metadata)
    if metadata.keys() >= SAID:  # of wan-tpu's own servers
        say_metadata(metadata)


def _how_to_get(video: RemoteVideo, output: pathlib.Path, parsed: argparse.Namespace) -> str:
    """What is to be done for a video that nobody waits for any more."""
    words = ["wan-tpu", "remote", "fetch", video.id, "-o", str(output)]
    for option in ("server", "api_key_file"):
        if (value := getattr(parsed, option)) is not None:
            words += [f"--{option.replace('_', '-')}", value]
    return f"{video.id} goes on at the server; to get it: {shlex.join(words)}"


def _leave(
    server: RemoteServer,
    left: list[tuple[RemoteVideo, pathlib.Path]],
    parsed: argparse.Namespace,
    *,
    by_hand: bool,
) -> None:
    """Says what becomes of the jobs, and cancels them if Ctrl-C comes once more."""
    try:
        for each in left:
            say(_how_to_get(*each, parsed))
        if by_hand:
            it = "it" if len(left) == 1 else "them"
            say(f"Ctrl-C within {SECONDS_TO_CANCEL:.0f} s cancels {it} there")
            time.sleep(SECONDS_TO_CANCEL)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a third one waits for nothing
        for video, _ in left:
            try:
                server.cancel(video.id)
            except NotCancellableError as error:
                say(str(error))
            else:
                say(f"{video.id} is cancelled")
