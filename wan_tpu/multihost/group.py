"""Which process of how many this is, and where the first one listens."""

import dataclasses
import glob
import logging
import os
import pathlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

from wan_tpu.errors import InputError, WanTpuError
from wan_tpu.multihost.secret import check_protected, read_secret

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8490
"""Where process 0 of a TPU slice listens for the others. The TPU runtime has 8470 to 8482."""

TPU_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")
"""Device files of TPUs, old and new driver."""

METADATA_SECONDS, METADATA_TRIES = 5, 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessGroup:
    """The processes that run one model together, seen from one of them.

    Attributes:
        num_processes: how many there are; 1 for a process on its own.
        process_id: which one this is, from 0, as JAX counts them. 0 leads.
        host: name or address of process 0, as the others reach it; empty for one process.
        port: where process 0 listens there.
        secret: by which they know each other; none is enough where only this machine can connect.
    """

    num_processes: int = 1
    process_id: int = 0
    host: str = ""
    port: int = 0
    secret: str = dataclasses.field(default="", repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.process_id < self.num_processes:
            last = self.num_processes - 1
            raise InputError(f"process {self.process_id} is none of 0 to {last}")
        if self.num_processes > 1:
            check_protected(self.host, self.secret)

    @property
    def coordinator(self) -> str:
        """`HOST:PORT` of process 0."""
        return join_address(self.host, self.port)

    @property
    def leads(self) -> bool:
        """Whether this process decides and answers."""
        return self.process_id == 0


ALONE = ProcessGroup()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A group whose processes have found each other, for `wan_tpu.runtime.start`.

    Attributes:
        group: how many there are, and which this is.
        jax_coordinator: `HOST:PORT` for JAX's coordination service, which process 0 runs.
    """

    group: ProcessGroup
    jax_coordinator: str


def find_group(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    secret_file: pathlib.Path | None = None,
) -> ProcessGroup:
    """The group that the user named, else that of the TPU slice, else a process on its own.

    Args:
        coordinator: `HOST:PORT` where process 0 listens.
        num_processes: how many there are; 1 alone turns the search for a slice off.
        process_id: which one this is.
        secret_file: has the secret of the group; looked at only if there are several.

    Raises:
        InputError: some of the first three are missing, or out of range; or there is no secret
            where one is needed, or its file is not as it must be.
        WanTpuError: this is a TPU VM whose metadata server does not answer.
    """
    given = (coordinator, num_processes, process_id)
    if num_processes == 1 and process_id in (None, 0):
        return ALONE
    if given == (None, None, None):
        is_tpu = any(map(glob.glob, TPU_FILES))
        return _slice_of_this_machine(secret_file) if is_tpu else ALONE
    if None in given:
        raise InputError(
            "several processes need all of coordinator HOST:PORT, processes N and process-id I, "
            f"got {coordinator}, {num_processes} and {process_id}"
        )
    assert coordinator is not None
    assert num_processes is not None
    assert process_id is not None
    host, port = split_address(coordinator)
    return _make_group(num_processes, process_id, host, port, secret_file)


def split_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, or `[ADDRESS]:PORT` for IPv6, as its two parts.

    Raises:
        InputError: it has another form.
    """
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^\s:/]+)):([0-9]{1,5})", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise InputError(f"the coordinator is HOST:PORT, for example 10.0.0.2:8490, got {text!r}")
    return match[1] or match[2], int(match[3])


def join_address(host: str, port: int) -> str:
    """The opposite of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _slice_of_this_machine(secret_file: pathlib.Path | None) -> ProcessGroup:
    """The group of a machine with TPU chips: from Kubernetes' variables or the VM's metadata."""
    return from_kubernetes(os.environ, secret_file) or from_tpu_metadata(secret_file) or ALONE


def from_kubernetes(
    environment: Mapping[str, str], secret_file: pathlib.Path | None = None
) -> ProcessGroup | None:
    """What GKE tells a pod of its slice; None elsewhere."""
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    worker = environment.get("TPU_WORKER_ID")
    if not names or worker is None:
        return None
    return _group_of(names.split(","), worker, secret_file)


def from_tpu_metadata(secret_file: pathlib.Path | None = None) -> ProcessGroup | None:
    """What a TPU VM's metadata server says of its slice; None where there is no such server.

    Raises:
        WanTpuError: it is there and does not answer: taking the machine for one on its own would
            make the TPU runtime wait for ever.
    """
    if "TPU_SKIP_MDS_QUERY" in os.environ:
        return None
    worker = _read_metadata("agent-worker-number")
    endpoints = _read_metadata("worker-network-endpoints") if worker is not None else None
    if worker is None or endpoints is None:
        return None
    return _group_of(endpoints.split(","), worker, secret_file)


def _group_of(endpoints: list[str], worker: str, secret_file: pathlib.Path | None) -> ProcessGroup:
    """The group of these workers: each `host`, `host:port` or `name:number:address`, in order."""
    parts = endpoints[0].strip().split(":")
    host = parts[2] if len(parts) == 3 else parts[0]
    if len(endpoints) == 1:
        return ALONE
    return _make_group(len(endpoints), int(worker), host, DEFAULT_PORT, secret_file)


def _make_group(
    num_processes: int, process_id: int, host: str, port: int, secret_file: pathlib.Path | None
) -> ProcessGroup:
    return ProcessGroup(
        num_processes=num_processes,
        process_id=process_id,
        host=host,
        port=port,
        secret="" if secret_file is None else read_secret(secret_file),
    )


def _read_metadata(key: str) -> str | None:
    """An attribute of this VM; None if it has none or is no VM of Google's."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    reason: Exception | None = None
    for _ in range(METADATA_TRIES):
        try:
            with urllib.request.urlopen(request, timeout=METADATA_SECONDS) as answer:
                return answer.read().decode().strip()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            reason = error
        except (urllib.error.URLError, OSError) as error:
            if not isinstance(getattr(error, "reason", error), TimeoutError):
                return None  # nothing is called so here, or nobody listens
            reason = error
        time.sleep(0.5)
    raise WanTpuError(
        f"the metadata server {server} does not tell {key} ({reason}); say it with "
        "--coordinator, --processes and --process-id"
    )
