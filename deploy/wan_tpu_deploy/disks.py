"""Data disks: one for a slice of one worker, made before it, left behind by it."""

from wan_tpu_deploy.deployment import Deployment, Node, disk_name
from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.fanout import Task
from wan_tpu_deploy.gcloud import Command, read_list


def check_one_worker(deployment: Deployment) -> None:
    """Refuses a disk that cannot be attached, before anything is made.

    Raises:
        DeployError: the slice has several workers, or it is not known where the disk would be.
    """
    settings, kind = deployment.settings, deployment.accelerator_type
    if not settings["data-disk"]:
        return
    if kind.num_workers > 1:
        raise DeployError(
            f"--data-disk is for slices of one worker, and {kind.name} has {kind.num_workers}: "
            "Google attaches a disk that is written to one machine only. Leave it out: each "
            "worker's boot disk has 100 GB, which one 14B model fits"
        )
    for key in ("project", "zone"):
        settings.required(key)  # a TPU names its disk by the whole path


def make_disks(deployment: Deployment) -> None:
    """Makes the disks that are not there yet; one of an earlier slice is taken as it is.

    Raises:
        DeployError: one cannot be made.
    """
    size = deployment.settings["data-disk"]
    if not size:
        return
    names = [disk_name(name) for name in deployment.slice_names]
    look = _list_command(deployment)
    if deployment.dry_run:
        print(f"{look.render()}\n# assumed to answer: none")
        there: set[str] = set()
    else:
        there = {disk["name"] for disk in read_list(look)} & set(names)
    for name in sorted(there):
        print(f"# the disk {name} is there, with what is on it")
    kind = deployment.accelerator_type.generation.disk_type
    flags = (f"--size={size}GB", f"--type={kind}", f"--labels=wan-tpu={deployment.settings.name}")
    missing = [name for name in names if name not in there]
    tasks = [Task(name, deployment.gcloud.disks("create", name, flags=flags)) for name in missing]
    if tasks:
        deployment.must(f"data disks of {size} GB, which cost until they are deleted", tasks)


def disk_flags(deployment: Deployment, slice_name: str) -> tuple[str, ...]:
    """What attaches a slice's disk to it."""
    settings = deployment.settings
    if not settings["data-disk"]:
        return ()
    place = f"projects/{settings['project']}/zones/{settings['zone']}"
    return (f"--data-disk=source={place}/disks/{disk_name(slice_name)},mode=read-write",)


def say_what_stays(deployment: Deployment, nodes: list[Node]) -> None:
    """After the slices are gone: their disks are not, and cost."""
    for name in (disk for node in nodes for disk in node.data_disks):
        command = deployment.gcloud.disks("delete", name)
        print(f"the disk {name} stays, with jobs and models, and costs; the next create takes it.")
        print(f"  {command.render()}  removes it")


def _list_command(deployment: Deployment) -> Command:
    label = f"--filter=labels.wan-tpu={deployment.settings.name}"
    return deployment.gcloud.disks("list", flags=(label, "--format=json"))
