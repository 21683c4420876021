"""The command line: verbs, flags, exit codes."""

import argparse
import io
import os
import pathlib
import signal
import sys
from typing import Optional

from wan_tpu_deploy import kubectl, kubernetes, reach, service, slices, training
from wan_tpu_deploy.deployment import Deployment
from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.gcloud import check_installed
from wan_tpu_deploy.settings import DEFAULT_FILE, DEFAULTS, Settings, add_flags, read_settings

WHERE = ("project", "zone", "account", "ssh")
WHAT = ("type", "slices", "spot", "queued")
CREATION = (
    "runtime-version",
    "max-run-duration",
    "valid-until-duration",
    "network",
    "subnetwork",
    "service-account",
    "labels",
    "data-disk",
)
INTERRUPTED = 130


def main(argv: Optional[list[str]] = None) -> int:
    """Runs one verb; 0 done, 1 something failed, 2 the command line cannot be meant."""
    _settle_streams()
    args = make_parser().parse_args(argv)
    try:
        _check_numbers(args)
        flags = {key: getattr(args, key.replace("-", "_"), None) for key in DEFAULTS}
        settings = read_settings(args.name, flags, args.config)
        on_cluster = getattr(args, "kubernetes", False)
        if not args.dry_run:
            if on_cluster:
                kubectl.check_installed()
            if not on_cluster or args.verb in ("train", "fetch"):
                check_installed()
        print(f"# {args.verb} {settings.name}\n{settings.describe()}", flush=True)
        return (_run_on_cluster if on_cluster else run_verb)(args, settings)
    except DeployError as error:
        print(f"wan-tpu-deploy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        where = error.filename or "standard output"
        print(f"wan-tpu-deploy: {where}: {error.strerror}", file=sys.stderr)
        # What could not be written is still there, and Python would try it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def _settle_streams() -> None:
    """Says what it must wherever it is started: streams that are closed, terminals of ASCII."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it, as any Unix program


def _check_numbers(args: argparse.Namespace) -> None:
    """Refuses numbers that no verb could mean, before gcloud is asked anything."""
    for key, least, example in (
        ("timeout_seconds", 1, 3600),
        ("lines", 0, 100),
        ("worker", 0, 0),
        ("slice", 0, 0),
    ):
        value = getattr(args, key, None)
        if value is not None and value < least:
            flag = key.replace("_", "-")
            raise DeployError(f"--{flag} is {value}; expected {least} or more, such as {example}")


def run_verb(args: argparse.Namespace, settings: Settings) -> int:
    """Calls what the verb stands for; its exit code."""
    deployment = Deployment(settings, dry_run=args.dry_run)
    if args.verb == "create":
        slices.create(deployment)
    elif args.verb == "install":
        service.install(deployment)
    elif args.verb == "start":
        service.start(
            deployment,
            commit=args.commit,
            is_open=args.open,
            timeout=args.timeout_seconds,
            new_secret=args.new_group_secret,
        )
    elif args.verb == "train":
        _train(deployment, args)
    elif args.verb == "status":
        return 0 if service.status(deployment) else 1
    elif args.verb == "logs":
        service.logs(deployment, worker=args.worker, lines=args.lines, follow=args.follow)
    elif args.verb == "tunnel":
        return reach.tunnel(deployment, index=args.slice, local_port=args.local_port)
    elif args.verb == "fetch":
        fetch = reach.fetch_result if args.trained else reach.fetch
        fetch(deployment, what=args.what, index=args.slice, to=args.to)
    elif args.verb == "stop":
        service.stop(deployment)
    else:
        slices.delete(deployment, yes=args.yes)
    return 0


def _run_on_cluster(args: argparse.Namespace, settings: Settings) -> int:
    """Calls what a verb with `--kubernetes` stands for; its exit code."""
    how = {"dry_run": args.dry_run}
    if args.verb == "train":
        run = kubernetes.make_run(settings, args)
        kubernetes.train(settings, run, timeout=args.timeout_seconds, **how)
    elif args.verb == "status":
        return 0 if kubernetes.status(settings, **how) else 1
    elif args.verb == "logs":
        words = {"worker": args.worker, "lines": args.lines, "follow": args.follow}
        kubernetes.logs(settings, **words, **how)
    elif args.verb == "fetch":
        if not args.trained:
            raise DeployError("with --kubernetes `fetch` brings a run's result: add --trained")
        kubernetes.fetch(settings, args.what, args.to, timeout=args.timeout_seconds, **how)
    else:
        kubernetes.stop(settings, **how)
    return 0


def _train(deployment: Deployment, args: argparse.Namespace) -> None:
    run = training.make_run(args.file, name=args.run, data=args.data, output=args.output)
    how = {"commit": args.commit, "timeout": args.timeout_seconds}
    started = training.train(deployment, run, **how)
    if args.keep_going and not deployment.dry_run:
        training.keep_going(deployment, run, **{**how, "commit": started})


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="deploy/wan-tpu-deploy",
        description="Creates, installs, starts, watches and deletes wan-tpu on TPU slices.",
        epilog=f"Flags come before the settings file ({DEFAULT_FILE}), and that before defaults.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    create = _add_verb(verbs, "create", "make the slices and wait until they are there")
    add_flags(create, CREATION)

    install = _add_verb(verbs, "install", "put one commit on every worker; twice is harmless")
    add_flags(install, ("repository", "ref"))

    start = _add_verb(verbs, "start", "start the service everywhere and wait until it is ready")
    add_flags(start, service.START_SETTINGS)
    start.add_argument(
        "--commit",
        default="latest",
        help="installed commit to run: its first digits, latest (default) or previous",
    )
    start.add_argument(
        "--open", action="store_true", help="listen on every address; needs --api-keys-file"
    )
    start.add_argument(
        "--new-group-secret",
        action="store_true",
        help="give the workers of each slice another secret to know each other by",
    )
    start.add_argument("--timeout-seconds", type=int, default=3600, help="default 3600")

    _add_train(verbs)

    status = _add_verb(
        verbs, "status", "slices, workers, service, training; exit code 0 if all is ready"
    )
    _add_cluster(status)

    logs = _add_verb(verbs, "logs", "the journal of service and training of every worker")
    logs.add_argument("--worker", type=int, help="of this worker only")
    logs.add_argument("--lines", type=int, default=100, help="how far back (default 100)")
    logs.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    _add_cluster(logs)

    tunnel = _add_verb(verbs, "tunnel", "reach worker 0 on a port of this machine")
    add_flags(tunnel, ("port",))
    tunnel.add_argument("--local-port", type=int, help="port here; by default the same")
    tunnel.add_argument("--slice", type=int, default=0, help="which of several (default 0)")

    fetch = _add_verb(verbs, "fetch", "copy a job's files, a run's result, or any path to here")
    fetch.add_argument(
        "what",
        metavar="JOB_OR_PATH",
        help="a job's id, a path on worker 0, or a run's name; on a cluster its gs://... folder",
    )
    fetch.add_argument(
        "--trained", action="store_true", help="it is a run's: its adapter, or its model's folder"
    )
    fetch.add_argument("--to", type=pathlib.Path, default=pathlib.Path(), help="local folder")
    fetch.add_argument("--slice", type=int, default=0, help="which of several (default 0)")
    fetch.add_argument("--timeout-seconds", type=int, default=3600, help="default 3600")
    _add_cluster(fetch, "image")

    stop = _add_verb(verbs, "stop", "drain the service, save the run; the slices stay, and cost")
    _add_cluster(stop)

    delete = _add_verb(verbs, "delete", "remove slices and queued resources, after asking")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def _add_train(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    train = _add_verb(verbs, "train", "train on a slice; the same again goes on where it was")
    train.add_argument(
        "file", metavar="CONFIG.toml", type=pathlib.Path, help="as wan-tpu train takes it"
    )
    train.add_argument("--run", help="name of the run; by default the file's")
    train.add_argument(
        "--data",
        metavar="FOLDER",
        help="folder here (up to 4 GB) or gs://BUCKET/FOLDER, put on every worker; by default what "
        "the file names is there already",
    )
    train.add_argument(
        "--output",
        metavar="FOLDER",
        help="gs://BUCKET/FOLDER, or a folder that all workers have mounted, for checkpoints and "
        "log; by default on the disk of a slice's only worker",
    )
    train.add_argument(
        "--keep-going",
        action="store_true",
        help="stay, and make the slice anew when it is taken away, until the run is done",
    )
    train.add_argument(
        "--commit",
        default="latest",
        help="installed commit to run: its first digits, latest (default) or previous",
    )
    train.add_argument("--timeout-seconds", type=int, default=3600, help="default 3600")
    add_flags(train, (*training.SETTINGS, "repository", *CREATION))
    _add_cluster(train, *kubernetes.RUN_SETTINGS)


def _add_cluster(parser: argparse.ArgumentParser, *settings: str) -> None:
    """`--kubernetes`, and what says where that is."""
    cluster = parser.add_argument_group("a run on a Kubernetes cluster, NAME the JobSet's")
    cluster.add_argument("--kubernetes", action="store_true", help="a JobSet instead of a slice")
    add_flags(cluster, (*kubernetes.WHERE, *settings))


def _add_verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", verb: str, text: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(verb, help=text, description=text)
    parser.add_argument("name", metavar="NAME", help="of the deployment, for example wan")
    parser.add_argument("--config", metavar="FILE", help=f"settings file (default {DEFAULT_FILE})")
    parser.add_argument(
        "--dry-run", action="store_true", help="print every command, run none of them"
    )
    add_flags(parser, WHERE + WHAT)
    return parser
