"""Holds the house's floors: who may import whom."""

import ast
import pathlib
import re
import subprocess
import sys

import server
import wan_tpu
from tests.server.running import SCRIPTED, RunningServer

ROOT = pathlib.Path(wan_tpu.__file__).parent

FLOORS = [
    {
        "errors",
        "family",
        "fast",
        "geometry",
        "media",
        "request",
        "json_lines",
        "multihost",
        "step_cache",
        "storage",
        "fleet",
    },
    {"sharding", "torch_compat", "runtime", "compile_cache"},
    {"stage", "int8", "torch_bridge", "torch_module", "checkpoints"},
    {"attention"},
    {"adapters", "text", "image", "transformer", "vae", "schedulers"},
    {"pipeline"},
    {"dataset"},
    {"training"},
    {"planner", "demo"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SAME_FLOOR_OK = [FLOORS[0], {"runtime", "compile_cache"}, FLOORS[2]]
TORCHAX_ROOMS = {"torch_compat", "torch_bridge", "text", "image", "transformer"}


def rooms_and_imports(root=ROOT):
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield path, parts[0], [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                yield path, parts[0], names


def test_every_room_stands_on_a_floor():
    rooms = {p.relative_to(ROOT).with_suffix("").parts[0] for p in ROOT.rglob("*.py")} - {
        "__init__"
    }
    assert rooms <= FLOOR.keys(), rooms - FLOOR.keys()


def test_nobody_imports_upward_or_sideways():
    """Red when, for example, `text` imports `transformer`, or `checkpoints` imports `pipeline`."""
    wrong = []
    for path, room, names in rooms_and_imports():
        for name in names:
            if not name.startswith("wan_tpu."):
                continue
            other = name.split(".")[1]
            if other == room or other not in FLOOR:
                continue
            below = FLOOR[other] < FLOOR[room]
            friends = any({room, other} <= floor for floor in SAME_FLOOR_OK)
            if not (below or friends):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, wrong


def test_only_some_rooms_know_that_there_are_several_processes():
    knowing = {"multihost", "runtime", "cli"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, room, names in rooms_and_imports()
        for name in names
        if name.startswith("wan_tpu.multihost") and room not in knowing
    ]
    assert not wrong, wrong


SERVER = pathlib.Path(server.__file__).parent
SERVER_FLOORS = [
    {"errors", "keys", "logs", "metrics", "settings", "signals", "systemd"},
    {"environment", "files", "slices"},
    {"engine"},
    {"jobs"},
    {"fleet"},
    {"answered"},
    {"service", "web"},
    {"http"},
    {"__main__", "demo"},
]
SERVER_FLOOR = {room: number for number, rooms in enumerate(SERVER_FLOORS) for room in rooms}
SETTINGS_OF_A_ROOM = "server.fleet.settings"
"""What `server.settings` is made of lies beside it, wherever its file is."""
ENGINE_ALONE = {"server.engine.process", "server.engine.pipeline", "server.files.writer"}


def test_the_library_knows_nothing_of_the_server():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, _, names in rooms_and_imports()
        for name in names
        if name.split(".")[0] == "server"
    ]
    assert not wrong, wrong


def test_the_server_imports_public_names_of_the_library():
    wrong = [
        f"{path.name} imports {name}"
        for path, _, names in rooms_and_imports(SERVER)
        for name in names
        if name.startswith("wan_tpu.") and re.search(r"\._(?!_)", name)
    ]
    assert not wrong, wrong


def test_the_server_imports_downward_alone():
    """Red when, for example, a job imports a route, or the engine a job."""
    wrong = []
    for path, room, names in rooms_and_imports(SERVER):
        if path == SERVER / "fleet" / "settings.py":
            room = "settings"
        for name in names:
            other = name.split(".")[1] if name.startswith("server.") else room
            if name.startswith(SETTINGS_OF_A_ROOM):
                other = "settings"
            is_same_file = room == other
            if not is_same_file and SERVER_FLOOR[other] >= SERVER_FLOOR[room]:
                friends = {room, other} <= SERVER_FLOORS[0]
                wrong += [] if friends else [f"{path.relative_to(SERVER)} imports {name}"]
    assert not wrong, wrong


def test_only_the_engine_process_loads_the_pipeline():
    """What the API process imports, all of it, and none of it is JAX or torch."""
    paths = [p.relative_to(SERVER.parent).with_suffix("") for p in SERVER.rglob("*.py")]
    modules = {".".join(path.parts).removesuffix(".__init__") for path in paths}
    modules = {m for m in modules if "migrations" not in m and "__main__" not in m} - ENGINE_ALONE
    code = f"import sys, {', '.join(sorted(modules))}; "
    code += "print([m for m in ('jax', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_some_rooms_know_torchax():
    wrong = {
        f"{path.relative_to(ROOT)}"
        for path, room, names in rooms_and_imports()
        if room not in TORCHAX_ROOMS and any(n.split(".")[0] == "torchax" for n in names)
    }
    assert not wrong, wrong


def test_the_bottom_floor_needs_no_jax():
    for path, room, names in rooms_and_imports():
        if room in FLOORS[0]:
            assert not any(n.split(".")[0] in ("jax", "torch", "flax") for n in names), path


FLEETS_OWN = ("temporalio", "obstore", "google.cloud")


def test_a_server_of_one_slice_imports_nothing_of_a_fleet(tmp_path):
    """What a server and its engine have imported by the end of a first video, as Python tells."""
    environment = {"PYTHONPROFILEIMPORTTIME": "1"}
    running = RunningServer(tmp_path / "data", engine=SCRIPTED, environment=environment)
    try:
        running.wait_ready().finish(running.create())
    finally:
        running.stop()
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", running.log(), re.MULTILINE))
    assert {"fastapi", "server.jobs.local", "server.engine.lockstep"} <= imported
    assert [name for name in sorted(imported) if name.startswith(FLEETS_OWN)] == []
