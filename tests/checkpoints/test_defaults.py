"""What a folder says about how it is run is followed, or said to be overridden."""

import json

import pytest

from tests.damaged_models import copy_wan_tiny
from wan_tpu.checkpoints.defaults import SCHEDULER_FILE, WANS, wan_origins
from wan_tpu.checkpoints.diffusers_folder import read_folder
from wan_tpu.checkpoints.known import KNOWN_MODELS
from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.errors import CheckpointError
from wan_tpu.pipeline.check import check_request
from wan_tpu.request import VideoRequest
from wan_tpu.schedulers.api import make_schedule

UNIPC = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}
UNIPC |= {"use_flow_sigmas": True}
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
FILE = SCHEDULER_FILE


@pytest.fixture
def folder(tmp_path):
    """wan-tiny without defaults of its own."""
    folder = copy_wan_tiny(tmp_path / "fine-tuned")
    (folder / "generation_defaults.json").unlink()
    return folder


def write_scheduler(folder, config):
    (folder / FILE).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("config", "scheduler", "shifts", "origins"),
    [
        (UNIPC | {"flow_shift": 8.0}, "unipc", (8.0, 8.0), {"flow_shift": FILE}),
        (UNIPC | {"flow_shift": 3.0}, "unipc", (5.0, 5.0), {}),  # the converter's
        (UNIPC, "unipc", (5.0, 5.0), {}),
        (
            EULER | {"shift": 3.0},
            "euler",
            (3.0, 3.0),
            {"flow_shift": FILE, "scheduler": FILE},
        ),
        (EULER | {"shift": 12}, "euler", (12.0, 12.0), {"flow_shift": FILE, "scheduler": FILE}),
        (EULER, "euler", (1.0, 1.0), {"flow_shift": FILE, "scheduler": FILE}),
        (
            {"_class_name": "LCMScheduler"},
            "unipc",
            (5.0, 5.0),
            {"scheduler": f"{WANS}, instead of the folder's LCMScheduler"},
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "flow_shift": 7},
            "unipc",
            (7.0, 7.0),
            {
                "flow_shift": FILE,
                "scheduler": f"{WANS}, instead of the folder's DPMSolverMultistepScheduler",
            },
        ),
    ],
)
def test_a_folders_scheduler(folder, caplog, config, scheduler, shifts, origins):
    write_scheduler(folder, config)
    with caplog.at_level("INFO"):
        model = open_model(str(folder))
    request = VideoRequest(prompt="a fox")
    found, _ = check_request(model, request)
    assert found.scheduler == scheduler
    defaults = model.defaults
    assert (defaults.flow_shift(832, 480), defaults.flow_shift(1280, 720)) == shifts
    assert dict(model.defaults_from) == wan_origins() | origins
    for origin in origins.values():
        assert f"defaults from {origin}: " in caplog.text
    assert ("which is not implemented: unipc runs instead" in caplog.text) == (
        config["_class_name"] not in (UNIPC["_class_name"], EULER["_class_name"])
    )
    make_schedule(
        scheduler, num_inference_steps=3, flow_shift=2.0, config=model.configs["scheduler"]
    )


def test_the_request_comes_before_the_folder(folder):
    write_scheduler(folder, EULER | {"shift": 9.0})
    request = VideoRequest(prompt="a fox", scheduler="unipc", flow_shift=2.0)
    found, _ = check_request(open_model(str(folder)), request)
    assert (found.scheduler, found.flow_shift) == ("unipc", 2.0)


def test_the_librarys_own_file_comes_before_the_schedulers(folder):
    write_scheduler(folder, EULER | {"shift": 9.0})
    own = {"scheduler": "unipc", "num_inference_steps": 4}
    (folder / "generation_defaults.json").write_text(json.dumps(own))
    model = open_model(str(folder))
    assert (model.defaults.scheduler, model.defaults.num_inference_steps) == ("unipc", 4)
    assert model.defaults.flow_shift(832, 480) == 9.0
    assert model.defaults_from["num_inference_steps"] == "generation_defaults.json"
    assert model.defaults_from["scheduler"] == "generation_defaults.json"
    assert model.defaults_from["flow_shift"] == FILE
    assert model.defaults_from["guidance_scale"] == WANS


def test_wans_own_repository_runs_as_wan_does(folder):
    """Its scheduler's file is the converter's, whatever stands there."""
    write_scheduler(folder, UNIPC | {"flow_shift": 16.0})
    model = read_folder("wan", folder, official=KNOWN_MODELS["wan2.1-t2v-14b"])
    assert model.defaults.flow_shift(1280, 720) == 5.0
    assert dict(model.defaults_from) == wan_origins()
    assert dict(describe_model("wan2.1-t2v-14b").defaults_from) == wan_origins()


@pytest.mark.parametrize("shift", ["x", True, -1, 0, 1e9, [3], float("nan")])
def test_a_shift_that_cannot_be_is_refused(folder, shift):
    write_scheduler(folder, UNIPC | {"flow_shift": shift})
    with pytest.raises(CheckpointError, match=r"flow_shift must lie between 0\.001 and 100, got"):
        open_model(str(folder))


def test_an_unknown_scheduler_in_the_own_file_is_refused(folder):
    (folder / "generation_defaults.json").write_text(json.dumps({"scheduler": "ddim"}))
    with pytest.raises(CheckpointError, match="unknown scheduler 'ddim'; known: unipc, euler"):
        open_model(str(folder))
