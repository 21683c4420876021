"""The verbs that make and remove slices: create, delete."""

import sys
import time

from wan_tpu_deploy.accelerators import find_type
from wan_tpu_deploy.deployment import Deployment, Node, Request, parse_request
from wan_tpu_deploy.disks import check_one_worker, disk_flags, make_disks, say_what_stays
from wan_tpu_deploy.errors import DeployError
from wan_tpu_deploy.fanout import Task, pace, print_table
from wan_tpu_deploy.gcloud import Command, read_object
from wan_tpu_deploy.hints import find_hint, made_nothing

POLL_SECONDS = 20.0
OVER = ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING")
"""States from which a queued resource never becomes a slice."""


def create(deployment: Deployment) -> None:
    """Asks for every slice at once and waits until they are there.

    Raises:
        DeployError: at least one was refused, failed or was taken away.
    """
    settings, kind = deployment.settings, deployment.accelerator_type
    if settings["max-run-duration"] and kind.generation.name not in ("v6e", "v5e"):
        raise DeployError(f"--max-run-duration (flex-start) is for v6e and v5e, not {kind.name}")
    check_one_worker(deployment)
    names = deployment.slice_names
    price = kind.describe_price(settings["zone"], spot=settings.switch("spot"))
    print(
        f"# {len(names)} x {kind.name}: {kind.num_chips} chips on {kind.num_workers} workers each"
    )
    print(f"# each costs {price}")
    make_disks(deployment)
    make = _queue_command if settings.switch("queued") else _create_command
    tasks = [Task(name, make(deployment, name, index)) for index, name in enumerate(names)]
    try:
        done = deployment.run("create", tasks)
    except KeyboardInterrupt:
        name = f"{settings.name}{flags_again(deployment)}"
        print(
            "Google may go on with what it has begun, which costs then.\n  "
            f"deploy/wan-tpu-deploy status {name}  shows it, delete removes it",
            file=sys.stderr,
        )
        raise
    if not done:
        failed = [task.where for task in tasks if task.returncode != 0]
        raise DeployError(f"not created: {', '.join(failed)}. {_say_what_costs(deployment, tasks)}")
    if settings.switch("queued"):
        _wait_for_requests(deployment, names)
    show_nodes(deployment, deployment.nodes())
    print(f"\nnext: deploy/wan-tpu-deploy install {settings.name}{flags_again(deployment)}")


def _say_what_costs(deployment: Deployment, tasks: list[Task]) -> str:
    """After a refusal: what is there all the same; looks, unless each error says that it cannot."""
    name = f"{deployment.settings.name}{flags_again(deployment)}"
    there = [task.where for task in tasks if task.returncode == 0]
    unsure = [task for task in tasks if task.returncode != 0 and not made_nothing(task.error)]
    if unsure:
        wanted = {task.where for task in tasks}
        try:
            found = [thing.name for thing in (*deployment.nodes(), *deployment.requests())]
        except DeployError:
            return (
                "Something may have been created and cost, which cannot be seen now: look with  "
                f"deploy/wan-tpu-deploy status {name}"
            )
        there = sorted(wanted & {*there, *found})
    if not there:
        disk = ", but for the data disk" if deployment.settings["data-disk"] else ""
        return f"Nothing was created, and nothing costs{disk}"
    return (
        f"There, and it costs: {', '.join(there)}. It goes with  "
        f"deploy/wan-tpu-deploy delete {name},  and then create can try again"
    )


def _common_flags(deployment: Deployment, index: int) -> tuple[str, ...]:
    settings = deployment.settings
    labels = [f"wan-tpu={settings.name}", f"wan-tpu-slice={index}"]
    labels += [settings["labels"]] if settings["labels"] else []
    flags = [f"--labels={','.join(labels)}", "--tags=wan-tpu"]
    flags += [
        f"--{key}={settings[key]}"
        for key in ("network", "subnetwork", "service-account")
        if settings[key]
    ]
    if settings["ssh"] == "internal":
        flags.append("--internal-ips")
    if settings.switch("spot"):
        flags.append("--spot")
    return tuple(flags)


def _create_command(deployment: Deployment, name: str, index: int) -> Command:
    kind = deployment.accelerator_type
    version = deployment.settings["runtime-version"] or kind.generation.runtime_version
    flags = (f"--accelerator-type={kind.name}", f"--version={version}")
    flags += (*_common_flags(deployment, index), *disk_flags(deployment, name))
    return deployment.gcloud.tpus("tpu-vm", "create", name, flags=flags)


def _queue_command(deployment: Deployment, name: str, index: int) -> Command:
    settings, kind = deployment.settings, deployment.accelerator_type
    version = settings["runtime-version"] or kind.generation.runtime_version
    flags = (f"--node-id={name}", f"--accelerator-type={kind.name}", f"--runtime-version={version}")
    flags += (*_common_flags(deployment, index), *disk_flags(deployment, name))
    if settings["valid-until-duration"]:
        flags += (f"--valid-until-duration={settings['valid-until-duration']}",)
    if settings["max-run-duration"]:
        flags += (
            "--provisioning-model=flex-start",
            f"--max-run-duration={settings['max-run-duration']}",
        )
    track = "alpha" if settings["max-run-duration"] else ""
    return deployment.gcloud.tpus(
        "queued-resources", "create", name, flags=(*flags, "--async"), track=track
    )


def _wait_for_requests(deployment: Deployment, names: list[str]) -> None:
    """Until each is ACTIVE; Ctrl-C leaves them in the queue."""
    commands = {
        name: deployment.gcloud.tpus("queued-resources", "describe", name, flags=("--format=json",))
        for name in names
    }
    if deployment.dry_run:
        print(f"\n# every {POLL_SECONDS:g} s until each is ACTIVE")
        for command in commands.values():
            print(command.render())
        return
    try:
        failed = _poll(commands)
    except KeyboardInterrupt:
        name = deployment.settings.name
        print(
            "\ninterrupted: the requests stay in Google's queue and cost from the moment they are "
            f"granted.\n  deploy/wan-tpu-deploy status {name}  shows them, delete removes them",
            file=sys.stderr,
        )
        raise
    if failed:
        text = "; ".join(
            f"{request.name} is {request.state} {request.detail}" for request in failed
        )
        hint = find_hint(text)
        text += f"\n  -> {hint}" if hint else ""
        name = f"{deployment.settings.name}{flags_again(deployment)}"
        raise DeployError(f"{text}\nremove with  deploy/wan-tpu-deploy delete {name}")


def _poll(commands: dict[str, Command]) -> list[Request]:
    """Asks again and again; returns the requests that never will be slices."""
    start, before, failed = time.monotonic(), {}, []
    waiting = dict(commands)
    while waiting:
        for name in list(waiting):
            request = parse_request(read_object(waiting[name]))
            if before.get(name) != request.state:
                minutes = (time.monotonic() - start) / 60
                print(f"{name}: {request.state} after {minutes:.0f} min", flush=True)
                before[name] = request.state
            if request.state == "ACTIVE" or request.state in OVER:
                del waiting[name]
            if request.state in OVER:
                failed.append(request)
        if waiting:
            time.sleep(POLL_SECONDS * pace())
    return failed


def delete(deployment: Deployment, *, yes: bool) -> None:
    """Shows what there is and what keeping it costs, asks, removes, and looks whether it is gone.

    Raises:
        DeployError: the answer was not the name, or something is left.
    """
    nodes, requests = deployment.nodes(), deployment.requests()
    name = deployment.settings.name
    if not nodes and not requests:
        print(f"nothing is labelled wan-tpu={name} in {deployment.place}")
        return
    show_nodes(deployment, nodes)
    for request in requests:
        print(f"  queued resource {request.name}: {request.state} {request.detail}".rstrip())
    if not deployment.dry_run and not yes:
        _ask(name)
    tasks = _delete_tasks(deployment, nodes, requests)
    done = deployment.run("delete", tasks)
    if deployment.dry_run:
        return
    left = [thing.name for thing in (*deployment.nodes(), *deployment.requests())]
    if left or not done:
        raise DeployError(
            f"still there, and it may cost: {', '.join(left) or 'nothing that can be seen'}; "
            f"run delete {name} again"
        )
    say_what_stays(deployment, nodes)
    print(f"nothing named {name} is left")


def _delete_tasks(deployment: Deployment, nodes: list[Node], requests: list[Request]) -> list[Task]:
    """A slice that came from the queue goes with its queued resource, else that stays behind."""
    delete_request = ("queued-resources", "delete")
    owners = {request.name for request in requests}
    tasks = [
        Task(name, deployment.gcloud.tpus(*delete_request, name, flags=("--force",)))
        for name in [request.name for request in requests]
    ]
    tasks += [
        Task(node.name, deployment.gcloud.tpus("tpu-vm", "delete", node.name))
        for node in nodes
        if node.request not in owners and node.name not in owners
    ]
    return tasks


def _ask(name: str) -> None:
    if not sys.stdin.isatty():
        raise DeployError("delete asks before it deletes and there is nobody to ask: give --yes")
    try:
        answer = input(f"\nEverything on it is lost. Type {name} to delete: ")
    except EOFError:
        answer = ""
    if answer.strip() != name:
        raise DeployError("not deleted: the answer was not the name")


def show_nodes(deployment: Deployment, nodes: list[Node]) -> None:
    """The table of slices with what each costs."""
    if deployment.dry_run or not nodes:
        return
    rows = [("slice", "type", "state", "workers", "costs")]
    for node in nodes:
        price = describe_price(deployment, node)
        rows.append((node.name, node.accelerator_type, node.state, str(node.num_workers), price))
    print_table(f"slices of {deployment.settings.name}", rows)


def describe_price(deployment: Deployment, node: Node) -> str:
    """What a slice costs; of a type that we do not make that is not known."""
    try:
        kind = find_type(node.accelerator_type)
    except DeployError:
        return "an amount that is not known here"
    return kind.describe_price(deployment.settings["zone"], spot=node.spot)


def flags_again(deployment: Deployment, *keys: str) -> str:
    """The flags that the next command needs too: where the slices are, and these."""
    settings = deployment.settings
    given = [
        key
        for key in ("project", "zone", "account", "ssh", *keys)
        if settings.origins[key] == "flag"
    ]
    return "".join(f" --{key} {settings[key]}" for key in given)
