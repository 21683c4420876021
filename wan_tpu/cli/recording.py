"""`--profile DIR`: a trace of some steps beside the video, which it must not cost."""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from wan_tpu.cli.progress import say
from wan_tpu.multihost.group import ProcessGroup
from wan_tpu.pipeline.progress import Progress

if TYPE_CHECKING:
    from wan_tpu.pipeline.profiling import Profile

OnProgress = Callable[[Progress], None]


def add_profile_argument(parser: Any) -> None:
    """`--profile`."""
    parser.add_argument(
        "--profile", metavar="DIR",
        help="also record three denoising steps after the first with JAX's profiler, into a new "
        "folder in DIR; each process of several into one of its own",
    )  # fmt: skip


def make_profile(parsed: argparse.Namespace, group: ProcessGroup) -> "Profile | None":
    """The profile that the command line asks for; its folder can be written.

    Raises:
        OutputError: it cannot.
    """
    if parsed.profile is None:
        return None
    from wan_tpu.pipeline.profiling import Profile

    return Profile(parsed.profile, process=group.process_id if group.num_processes > 1 else None)


@contextlib.contextmanager
def recording(profile: "Profile | None", on_progress: OnProgress) -> Iterator[OnProgress]:
    """What is to be told of progress in the block; says in the end what was recorded, or why not.

    A block that fails keeps what was recorded until then.
    """
    if profile is None:
        yield on_progress
        return

    def report(progress: Progress) -> None:
        profile.note(progress)
        on_progress(progress)

    has_failed = True
    try:
        yield report
        has_failed = False
    finally:
        profile.close()
        if profile.problem is None:
            say(profile.describe())
        elif not has_failed:
            say(profile.problem)
