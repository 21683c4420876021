"""A deployment: its slices, found by their label, and the ways to act on them or to only say so."""

import dataclasses
import pathlib
import shlex
from typing import Any, Callable, Optional

from wan_tpu_deploy.accelerators import AcceleratorType, accelerator_types, find_type
from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.fanout import FanOut, Task, say_what_was_left, summarize
from wan_tpu_deploy.gcloud import Command, Gcloud, read_list
from wan_tpu_deploy.settings import Settings

WORKER_SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "worker.sh"
STATE = "/var/lib/wan-tpu"
"""Where a worker keeps jobs, models and compiled programs."""

SCRIPT_DONE = "wan-tpu-worker: done"
"""What worker.sh says last."""


@dataclasses.dataclass(frozen=True)
class Node:
    """One slice as Google knows it.

    Attributes:
        name: of the TPU VM.
        accelerator_type: for example `v6e-16`.
        state: READY, CREATING, PREEMPTED ...
        num_workers: its machines.
        addresses: external address of each worker, "" where it has none.
        spot: whether it may be taken away.
        request: the queued resource that made it, or None.
        data_disks: names of the disks that are attached besides the boot disk.
    """

    name: str
    accelerator_type: str
    state: str
    num_workers: int
    addresses: tuple[str, ...] = ()
    spot: bool = False
    request: Optional[str] = None
    data_disks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Request:
    """A queued resource.

    Attributes:
        name: of the queued resource.
        state: WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED, FAILED ...
        detail: what Google says about the state, or "".
    """

    name: str
    state: str
    detail: str


class Deployment:
    """The slices of one name, in one project and zone."""

    def __init__(self, settings: Settings, *, dry_run: bool):
        self.settings = settings
        self.gcloud = Gcloud(settings)
        self.dry_run = dry_run

    @property
    def accelerator_type(self) -> AcceleratorType:
        """What is to be created.

        Raises:
            DeployError: no type is set, or there is none of that name.
        """
        return find_type(self.settings.required("type"))

    @property
    def slice_names(self) -> list[str]:
        """NAME, or NAME-0, NAME-1 ... when there are several."""
        name, count = self.settings.name, self.settings.num_slices
        return [name] if count == 1 else [f"{name}-{index}" for index in range(count)]

    def nodes(self) -> list[Node]:
        """The slices that are there; in a dry run those that `create` would make."""
        command = self.gcloud.list_nodes()
        if not self.dry_run:
            name = self.settings.name
            # gcloud's filter ignores case and may change: what is deleted must fit exactly.
            ours = [item for item in read_list(command) if _label(item) == name]
            return sorted(map(_parse_node, ours), key=_natural_order)
        print(command.render())
        kind = self.accelerator_type
        print(f"# assumed to answer: {self.settings.num_slices} x {kind.name}, READY")
        spot = self.settings.switch("spot")
        has_disk = bool(self.settings["data-disk"])
        return [
            Node(
                name,
                kind.name,
                "READY",
                kind.num_workers,
                ("",) * kind.num_workers,
                spot,
                data_disks=(disk_name(name),) if has_disk else (),
            )
            for name in self.slice_names
        ]

    def ready_nodes(self) -> list[Node]:
        """The slices, all of which can be worked with.

        Raises:
            DeployError: there is none, or one is not READY.
        """
        nodes = self.nodes()
        if not nodes:
            raise DeployError(
                f"no slice is labelled wan-tpu={self.settings.name} in {self.place}: create it, or "
                "check --project and --zone"
            )
        for node in nodes:
            if node.state != "READY":
                raise DeployError(
                    f"slice {node.name} is {node.state}, not READY: wait, or when it was preempted "
                    f"or terminated:  deploy/wan-tpu-deploy delete {self.settings.name}  and create"
                )
        return nodes

    @property
    def place(self) -> str:
        """Project and zone for people."""
        project = self.settings["project"] or "gcloud's default project"
        return f"{project}, {self.settings['zone'] or 'its default zone'}"

    def requests(self) -> list[Request]:
        """The queued resources of the deployment, those left behind without a slice too."""
        command = self.gcloud.list_requests()
        if not self.dry_run:
            found = [item for item in read_list(command) if self._is_ours(item)]
            return sorted(map(parse_request, found), key=_natural_order)
        print(command.render())
        if not self.settings.switch("queued"):
            return []
        print(f"# assumed to answer: {', '.join(self.slice_names)}, ACTIVE")
        return [Request(name, "ACTIVE", "") for name in self.slice_names]

    def _is_ours(self, request: dict[str, Any]) -> bool:
        specs = (request.get("tpu") or {}).get("nodeSpec") or []
        return any(_label(spec.get("node") or {}) == self.settings.name for spec in specs)

    def run(
        self,
        title: str,
        tasks: list[Task],
        *,
        quiet: bool = False,
        table: bool = True,
        only_looks: bool = False,
    ) -> bool:
        """Runs the tasks at once, or in a dry run prints them; True if all ended well.

        Args:
            title: what is being done, for the table and the transcript.
            tasks: what to run.
            quiet: show a task's output only if it failed.
            table: whether to end with a table.
            only_looks: nothing stays behind when it is interrupted.
        """
        if self.dry_run:
            print(f"\n# {title}")
            for task in tasks:
                print(task.command.render())
            return True
        if not quiet:
            print(f"\n{title}: {', '.join(task.where for task in tasks)}", flush=True)
        try:
            done = FanOut(quiet=quiet).run(tasks)
        except KeyboardInterrupt:
            if not only_looks:
                say_what_was_left(tasks)
            raise
        if table or not done:
            summarize(title, tasks)
        return done

    def worker_tasks(
        self, nodes: list[Node], make: Callable[[Node, int], Command], first_only: bool = False
    ) -> list[Task]:
        """One task for each worker, or for worker 0 of each slice."""
        return [
            Task(f"{node.name}/{worker}", make(node, worker))
            for node in nodes
            for worker in range(1 if first_only else node.num_workers)
        ]

    def script(
        self, *words: str, stdout: Optional[pathlib.Path] = None
    ) -> Callable[[Node, int], Command]:
        """The worker script with these arguments, as root, for any worker."""
        command = " ".join(("sudo bash -s --", *map(shlex.quote, words)))
        return lambda node, worker: self.gcloud.ssh(
            *(node.name, worker, command),
            stdin=WORKER_SCRIPT,
            stdout=stdout,
            end_mark=SCRIPT_DONE,
        )

    def must(self, title: str, tasks: list[Task], *, quiet: bool = False) -> None:
        """Runs tasks without which the verb cannot go on; quiet ones without a table.

        Raises:
            DeployError: at least one failed; names them.
        """
        if not self.run(title, tasks, quiet=quiet, table=not quiet):
            failed = [task.where for task in tasks if task.returncode != 0]
            raise DeployError(f"{title} failed on {', '.join(failed)}")


def _parse_node(item: dict[str, Any]) -> Node:
    endpoints = item.get("networkEndpoints") or []
    # A worker has an endpoint in each of its networks.
    endpoints = endpoints[:: max(1, len(item.get("networkConfigs") or []))]
    kind = _last(item.get("acceleratorType", ""))
    scheduling = item.get("schedulingConfig") or {}
    return Node(
        name=_last(item["name"]),
        accelerator_type=kind,
        state=item.get("state", "UNKNOWN"),
        num_workers=len(endpoints) or _num_workers(kind),
        addresses=tuple(
            (endpoint.get("accessConfig") or {}).get("externalIp", "") for endpoint in endpoints
        ),
        spot=bool(scheduling.get("spot") or scheduling.get("preemptible")),
        request=_last(item["queuedResource"]) if item.get("queuedResource") else None,
        data_disks=tuple(_last(disk["sourceDisk"]) for disk in item.get("dataDisks") or []),
    )


def _num_workers(kind: str) -> int:
    """Of a slice that has no addresses yet; of a type that we do not make, at least one."""
    made_here = {known.name: known.num_workers for known in accelerator_types()}
    return made_here.get(kind, 1)


def parse_request(item: dict[str, Any]) -> Request:
    """A queued resource from gcloud's JSON."""
    state = item.get("state") or {}
    failed = (state.get("failedData") or {}).get("error") or {}
    return Request(
        _last(item.get("name", "")), state.get("state", "UNKNOWN"), failed.get("message", "")
    )


def disk_name(slice_name: str) -> str:
    """The data disk of a slice."""
    return f"{slice_name}-data"


def _label(node: dict[str, Any]) -> str:
    """The deployment that a node belongs to, or nothing."""
    return (node.get("labels") or {}).get("wan-tpu", "")


def _last(resource_name: str) -> str:
    return resource_name.rpartition("/")[2]


def _natural_order(thing: Any) -> tuple[int, str]:
    """wan-2 before wan-10."""
    return len(thing.name), thing.name
