"""Does with a unit file what systemd would, without systemd.

    systemctl daemon-reload | enable | disable | restart | stop | show UNIT --property P --value

`restart` runs ExecStart in WorkingDirectory with EnvironmentFile, and again whenever it ends, but
for the codes of RestartPreventExitStatus and, where it says on-failure, 0. ExecCondition is asked
before, ExecStopPost told after. A service that notifies systemd is heard, line by line,
in $WAN_TPU_ROOT/run/UNIT/notified; one that does not is waited for by nobody. What it prints
goes to $WAN_TPU_ROOT/journal. What a machine of a slice would find out by itself, asking Google's
metadata server, is in $WAN_TPU_ROOT/machine.env.
"""

import itertools
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(os.environ["WAN_TPU_ROOT"])
NAME = next((word for word in sys.argv[2:] if word.startswith("wan-tpu")), "wan-tpu")
UNIT = ROOT / f"etc/systemd/system/{NAME}.service"
RUN = ROOT / "run" / NAME
SUPERVISOR, RESTARTS, ENABLED = RUN / "supervisor", RUN / "restarts", RUN / "enabled"
FAILED, NOTIFIED = RUN / "failed", RUN / "notified"


def read_unit():
    unit = {}
    for line in UNIT.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            unit.setdefault(key, []).append(value)
    return unit


def environment(unit):
    variables = {
        key: os.environ[key] for key in ("PATH", "LANG", "JAX_PLATFORMS") if key in os.environ
    }
    for file in [*unit["EnvironmentFile"], f"-{ROOT}/machine.env"]:
        path = pathlib.Path(file.lstrip("-"))
        if path.exists() or not file.startswith("-"):
            for line in path.read_text().splitlines():
                key, _, value = line.partition("=")
                quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
                variables[key] = value[1:-1] if quoted else value
    return variables


def supervise():
    """What Restart= does; SIGTERM ends the service and then this."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    unit = read_unit()
    assert (*unit["Restart"], *unit["Type"]) in (("always", "notify"), ("on-failure", "exec"))
    if unit["Type"] == ["exec"]:
        repeat(unit, environment(unit), unit["RestartPreventExitStatus"][0].split())
        return
    prevented = unit["RestartPreventExitStatus"][0].split()
    with tempfile.TemporaryDirectory(prefix="n") as folder:  # a socket's path is short
        listen(f"{folder}/s")
        variables = environment(unit) | {
            "NOTIFY_SOCKET": f"{folder}/s",
            "WATCHDOG_USEC": unit["WatchdogSec"][0] + "000000",
        }
        repeat(unit, variables, prevented)


def listen(path):
    """Writes down what is notified."""
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(path)

    def write():
        while True:
            with NOTIFIED.open("ab") as file:
                file.write(heard.recv(4096) + b"\n")

    threading.Thread(target=write, daemon=True).start()


def run_beside(unit, key, **variables):
    """Runs the command of ExecCondition or ExecStopPost, if there is one; its exit code."""
    for command in unit.get(key, []):
        return subprocess.call(shlex.split(command.lstrip("+-")), env={**os.environ, **variables})
    return 0


def words_of(command, variables):
    """A command's words: ${A} is one, $A as many as it has."""
    for word in shlex.split(command):
        if word.startswith("${"):
            yield variables[word[2:-1]]
        elif word.startswith("$"):
            yield from variables[word[1:]].split()
        else:
            yield word


def repeat(unit, variables, prevented):
    FAILED.unlink(missing_ok=True)
    on_failure = unit["Restart"] == ["on-failure"]
    for count in itertools.count():
        RESTARTS.write_text(str(count))
        if run_beside(unit, "ExecCondition"):
            SUPERVISOR.unlink(missing_ok=True)
            return
        with (ROOT / "journal").open("a") as journal:
            process = subprocess.Popen(
                tuple(words_of(unit["ExecStart"][0], variables)),
                cwd=unit["WorkingDirectory"][0],
                env=variables,
                umask=int(unit["UMask"][0], 8),
                stdout=journal,
                stderr=journal,
            )
        try:
            code = process.wait()
            run_beside(unit, "ExecStopPost", EXIT_STATUS=str(code), SERVICE_RESULT="exit-code")
            if str(code) in prevented:
                FAILED.touch()
                return
            if on_failure and code == 0:
                SUPERVISOR.unlink(missing_ok=True)
                return
            time.sleep(0.1)
        finally:
            process.terminate()
            process.wait()


def stop():
    FAILED.unlink(missing_ok=True)
    if SUPERVISOR.exists():
        pid = int(SUPERVISOR.read_text())
        SUPERVISOR.unlink()
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            return  # it stays down
        while pathlib.Path(f"/proc/{pid}/cmdline").exists() and "Z" not in state_of(pid):
            time.sleep(0.02)


def state_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def main(verb, *words):
    RUN.mkdir(exist_ok=True, parents=True)
    if verb in ("enable", "disable"):
        ENABLED.touch() if verb == "enable" else ENABLED.unlink(missing_ok=True)
    elif verb == "stop":
        stop()
    elif verb == "restart":
        stop()
        supervisor = subprocess.Popen(
            (sys.executable, __file__, "supervise", NAME),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        SUPERVISOR.write_text(str(supervisor.pid))
    elif verb == "supervise":
        supervise()
    elif verb == "show":
        running, failed = SUPERVISOR.exists(), FAILED.exists()
        values = {
            "ActiveState": "failed" if failed else "active" if running else "inactive",
            "SubState": "failed" if failed else "running" if running else "dead",
            "NRestarts": RESTARTS.read_text() if RESTARTS.exists() else "0",
        }
        print(values[words[words.index("--property") + 1]])


main(*sys.argv[1:])
