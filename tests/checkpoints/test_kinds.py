"""The kind of a model, from its folder alone: as diffusers writes it, as Wan's converter does."""

import inspect
import json
import shutil

import numpy as np
import pytest
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from tests.checkpoint_factory import RANDOM_KINDS, make_random_model
from wan_tpu import family
from wan_tpu.checkpoints.kinds import TRANSFORMER_DEFAULTS
from wan_tpu.checkpoints.known import KNOWN_MODELS
from wan_tpu.checkpoints.models import describe_model, open_model
from wan_tpu.errors import CheckpointError
from wan_tpu.request import VideoRequest
from wan_tpu.schedulers.api import make_schedule
from wan_tpu.transformer.config import TransformerConfig

KINDS = {
    "t2v": family.TEXT_TO_VIDEO,
    "t2v-a14b": family.TEXT_TO_VIDEO_A14B,
    "i2v": family.IMAGE_TO_VIDEO,
    "flf2v": family.FIRST_LAST_FRAME_TO_VIDEO,
    "i2v-a14b": family.IMAGE_TO_VIDEO_A14B,
    "ti2v": family.TEXT_IMAGE_TO_VIDEO,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One of each kind."""
    root = tmp_path_factory.mktemp("models")
    return {kind: make_random_model(root / kind, kind) for kind in RANDOM_KINDS}


@pytest.fixture
def editable(folders, tmp_path):
    """Copies one, and changes its `model_index.json` and configurations."""

    def copy(kind, index=None, **configs):
        folder = shutil.copytree(folders[kind], tmp_path / kind)
        edits = {"model_index.json": index or {}}
        edits |= {f"{component}/config.json": edit for component, edit in configs.items()}
        for name, changes in edits.items():
            values = json.loads((folder / name).read_text()) | changes
            (folder / name).write_text(json.dumps(values))
        return folder

    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_by_its_folder(folders, kind):
    model = open_model(str(folders[kind]))
    assert model.kind == KINDS[kind]
    assert list(model.configs) == [*KINDS[kind].components, "scheduler"]
    for component in model.kind.components:
        (path,) = (folders[kind] / component).glob("*.safetensors")
        names = set(load_file(path))
        names = {name.removeprefix("vision_model.") for name in names}
        names.discard("visual_projection.weight")
        assert set(model.source(component).shapes) == names


@pytest.mark.parametrize("kind", KINDS)
def test_a_kinds_defaults_are_wans(folders, kind):
    """Red when the shift is the converter's 3: the steps of each expert would be others."""
    defaults = open_model(str(folders[kind])).defaults
    known = next(known for known in KNOWN_MODELS.values() if known.kind == KINDS[kind])
    if kind in ("flf2v", "ti2v"):  # whose scheduler's file agrees
        assert defaults.flow_shift(832, 480) == known.defaults.flow_shift(832, 480)
    assert defaults == known.defaults


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Wan2.1-I2V-14B-720P-Diffusers", (1280, 720)),
        ("Wan2.1-I2V-14B-480P-Diffusers", (832, 480)),
        ("720p/tune", (832, 480)),
    ],
)
def test_a_copy_of_two_models_that_are_alike_is_told_by_its_name(folders, tmp_path, name, size):
    folder = shutil.copytree(folders["i2v"], tmp_path / name)
    defaults = describe_model(str(folder)).defaults
    assert (defaults.width, defaults.height) == size
    assert defaults.flow_shift(1280, 720) == 5.0


def test_a_folder_of_2_1_with_a_boundary_ratio_has_one_transformer(editable):
    """As today's converter writes them."""
    index = {"boundary_ratio": 0.875, "transformer_2": [None, None]}
    assert open_model(str(editable("t2v", index))).kind == family.TEXT_TO_VIDEO


def test_an_index_that_does_not_name_what_it_lacks(editable):
    """As older releases of diffusers wrote them."""
    folder = editable("t2v")
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("transformer_2", "boundary_ratio", "expand_timesteps"):
        del index[name]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert open_model(str(folder)).kind == family.TEXT_TO_VIDEO


def test_the_boundary_is_the_folders_where_it_has_one(editable):
    model = open_model(str(editable("t2v-a14b", {"boundary_ratio": 0.6})))
    assert model.kind.boundary_ratio == 0.6
    assert model.defaults.flow_shift(832, 480) == 12.0


def test_the_boundary_is_wans_where_the_folder_has_none(editable):
    assert (
        open_model(str(editable("i2v-a14b", {"boundary_ratio": None}))).kind.boundary_ratio == 0.9
    )


@pytest.mark.parametrize(
    ("kind", "index"),
    [
        ("ti2v", {"_class_name": "WanImageToVideoPipeline"}),
        ("i2v-a14b", {"image_encoder": [None, None], "image_processor": [None, None]}),
        ("t2v", {"_class_name": "WanVideoToVideoPipeline"}),
    ],
)
def test_other_ways_to_write_the_same(editable, kind, index):
    assert open_model(str(editable(kind, index))).kind == KINDS[kind]


def test_48_channels_without_a_word_of_timesteps_are_those_of_the_5b(editable):
    channels = {"in_channels": 48, "out_channels": 48}
    folder = editable("ti2v", {"expand_timesteps": None}, transformer=channels, vae={"z_dim": 48})
    assert describe_model(str(folder)).kind == family.TEXT_IMAGE_TO_VIDEO


def test_experts_may_be_written_by_different_releases(editable):
    """Where a file comes from does not matter, nor whether it repeats a default or a null."""
    second = {"_diffusers_version": "0.35.0", "_name_or_path": "x", "image_dim": None}
    folder = editable("t2v-a14b", transformer_2=second)
    path = folder / "transformer_2" / "config.json"
    config = json.loads(path.read_text())
    del config["rope_max_seq_len"], config["pos_embed_seq_len"]
    path.write_text(json.dumps(config))
    assert describe_model(str(folder)).kind == family.TEXT_TO_VIDEO_A14B


BAD = {
    "no class": ("t2v", {"_class_name": None}, {}, r"model_index\.json names no _class_name; Wan"),
    "VACE": (
        "t2v",
        {"_class_name": "WanVACEPipeline"},
        {},
        r"is of a WanVACEPipeline \(VACE\); WanPipeline and WanImageToVideoPipeline are impl",
    ),
    "VACE by its transformer": (
        "t2v",
        {},
        {"transformer": {"vace_layers": [0, 1]}},
        "the transformer is one of VACE, which is not implemented",
    ),
    "Animate": ("i2v", {"_class_name": "WanAnimatePipeline"}, {}, r"is of a WanAnimatePipeline \("),
    "another family": ("t2v", {"_class_name": "FluxPipeline"}, {}, "is of a FluxPipeline; WanPipe"),
    "no high-noise expert": (
        "t2v-a14b",
        {"transformer": [None, None]},
        {},
        r"model_index\.json has no transformer, only transformer_2; both experts are needed",
    ),
    "no transformer": ("t2v", {"transformer": None}, {}, r"model_index\.json has no transformer$"),
    "experts of different sizes": (
        "t2v-a14b",
        {},
        {"transformer_2": {"num_layers": 2}},
        r"transformer_2 has num_layers = 2 and transformer has 3; the two experts of a model must",
    ),
    "an expert of each task": (
        "i2v-a14b",
        {},
        {"transformer": {"in_channels": 6}},
        r"transformer_2 has in_channels = 16 and transformer has 6",
    ),
    "a text model's class": (
        "i2v",
        {"_class_name": "WanPipeline"},
        {},
        r"is of a WanPipeline, but has a transformer of 16 input and 6 output channels with image",
    ),
    "an image model's class": (
        "t2v",
        {"_class_name": "WanImageToVideoPipeline"},
        {},
        r"but has a transformer of 6 input and 6 output channels without .*, as a WanPipeline has",
    ),
    "channels of another control": (
        "i2v",
        {},
        {"transformer": {"in_channels": 22}},
        r"has 22 input and 6 output channels; as many input channels are implemented, or 16: the",
    ),
    "an image encoder and two experts": (
        "t2v-a14b",
        {},
        {"transformer": {"image_dim": 32}, "transformer_2": {"image_dim": 32}},
        r"of no kind of model that is implemented: .* with image_dim, which has a second one",
    ),
    "no image encoder": (
        "i2v",
        {"image_encoder": [None, None]},
        {},
        r"model_index\.json has no image_encoder, which an image-to-video model needs",
    ),
    "an impossible boundary": (
        "t2v-a14b",
        {"boundary_ratio": 875},
        {},
        r"boundary_ratio must lie between 0 and 1, got 875; 0\.875 is Wan's",
    ),
    "channels in words": (
        "t2v",
        {},
        {"transformer": {"in_channels": "16"}},
        r"the transformer's in_channels must be a whole number of at least 1, got '16'",
    ),
}


@pytest.mark.parametrize(("kind", "index", "configs", "message"), BAD.values(), ids=BAD)
def test_what_contradicts_itself_or_is_of_another_kind_is_refused(
    editable, kind, index, configs, message
):
    with pytest.raises(CheckpointError, match=message) as caught:
        describe_model(str(editable(kind, index, **configs)))
    assert "\n" not in str(caught.value)


def test_a_folder_that_lacks_its_image_encoder(editable):
    folder = editable("i2v")
    shutil.rmtree(folder / "image_encoder")
    with pytest.raises(CheckpointError, match=r"image_encoder/config\.json is missing"):
        open_model(str(folder))


def edit_processor(folder, changes, name="preprocessor_config.json", inside=None):
    path = folder / "image_processor" / "preprocessor_config.json"
    values = json.loads(path.read_text()) | changes
    path.unlink()
    path.with_name(name).write_text(json.dumps({inside: values} if inside else values))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": 2}, r"has resample = 2; CLIP's own, 3, is implemented"),
        ({"do_center_crop": False}, r"has do_center_crop = False; CLIP's own, True, is impl"),
        (
            {"size": {"height": 224, "width": 224}},
            r"has size = .*; CLIP's own, {'shortest_edge': 22",
        ),
        ({"crop_size": 336}, r"has crop_size = 336; CLIP's own, {'height': 224, 'width': 224}"),
        ({"image_mean": [0.5, 0.5, 0.5]}, r"has image_mean = \[0\.5, 0\.5, 0\.5\]"),
        ({"rescale_factor": 1}, "has rescale_factor = 1"),
    ],
)
def test_pictures_that_are_made_ready_in_another_way_are_refused(editable, changes, message):
    """Red when they are taken: nothing would fail, and every video be another."""
    with pytest.raises(CheckpointError, match=message):
        describe_model(str(edit_processor(editable("i2v"), changes)))
    nested = edit_processor(
        editable("flf2v"), changes, "processor_config.json", inside="image_processor"
    )
    with pytest.raises(CheckpointError, match=message):
        describe_model(str(nested))


def test_other_ways_to_write_clips_own_preprocessing(editable):
    changes = {
        "size": 224,
        "crop_size": 224,
        "do_convert_rgb": None,
        "rescale_factor": 0.00392156862,
    }
    assert describe_model(str(edit_processor(editable("i2v"), changes))).kind == KINDS["i2v"]
    folder = editable("flf2v", {"image_processor": [None, None]})
    shutil.rmtree(folder / "image_processor")
    assert describe_model(str(folder)).kind == KINDS["flf2v"]


def test_defaults_of_the_second_expert_are_for_models_that_have_one(editable):
    folder = editable("t2v-a14b")
    file = folder / "generation_defaults.json"
    file.write_text(json.dumps({"guidance_scale": 2.0, "guidance_scale_2": 1.5}))
    model = open_model(str(folder))
    assert (model.defaults.guidance_scale, model.defaults.guidance_scale_2) == (2.0, 1.5)
    assert model.defaults_from["guidance_scale_2"] == "generation_defaults.json"
    other = editable("t2v")
    shutil.copy(file, other)
    with pytest.raises(CheckpointError, match="unknown 'guidance_scale_2'; known: flow_shift, fps"):
        open_model(str(other))


# Wan's own, from `wan/configs/*.py` and `generate.py` of Wan 2.1 and 2.2; the shift at 480p, 720p.
TABLE = {
    "wan2.1-t2v-1.3b": ("832x480", 81, 16, 50, (5.0, 5.0), (5.0, None), "色调"),
    "wan2.1-t2v-14b": ("1280x720", 81, 16, 50, (5.0, 5.0), (5.0, None), "色调"),
    "wan2.1-i2v-14b-480p": ("832x480", 81, 16, 40, (3.0, 5.0), (5.0, None), "镜头晃动，色调"),
    "wan2.1-i2v-14b-720p": ("1280x720", 81, 16, 40, (3.0, 5.0), (5.0, None), "镜头晃动，色调"),
    "wan2.1-flf2v-14b-720p": (
        "1280x720", 81, 16, 50, (16.0, 16.0), (5.0, None), "镜头切换，镜头晃动，色调",
    ),
    "wan2.2-t2v-a14b": ("1280x720", 81, 16, 40, (12.0, 12.0), (4.0, 3.0), "色调"),
    "wan2.2-i2v-a14b": ("1280x720", 81, 16, 40, (5.0, 5.0), (3.5, 3.5), "色调"),
    "wan2.2-ti2v-5b": ("1280x704", 121, 24, 50, (5.0, 5.0), (5.0, None), "色调"),
}  # fmt: skip


def test_there_is_a_row_for_each_known_model():
    assert set(TABLE) == set(KNOWN_MODELS)


@pytest.mark.parametrize("name", TABLE)
def test_what_wan_runs_its_models_with(name):
    size, frames, fps, steps, shifts, guidance, prefix = TABLE[name]
    request = VideoRequest(prompt="a fox").resolved(describe_model(name).defaults)
    assert f"{request.width}x{request.height}" == size
    assert (request.num_frames, request.fps, request.num_inference_steps) == (frames, fps, steps)
    assert (request.guidance_scale, request.guidance_scale_2) == guidance
    assert request.negative_prompt is not None
    assert request.negative_prompt.startswith(prefix)
    defaults = describe_model(name).defaults
    for shift, sizes in zip(
        shifts, [((832, 480), (464, 832), (624, 624)), ((1280, 720), (720, 1280), (960, 960))],
        strict=True,
    ):  # fmt: skip
        assert {defaults.flow_shift(*each) for each in sizes} == {shift}
    # 2.4 to 1, at the area of 720p, whose shorter side is less than that.
    assert defaults.flow_shift(1472, 608) == shifts[1]


@pytest.mark.parametrize(
    ("name", "steps"), [("wan2.2-t2v-a14b", (26, 14)), ("wan2.2-i2v-a14b", (15, 25))]
)
def test_the_default_requests_steps_of_each_expert(name, steps):
    """Red with the shift of the hub's scheduler file, 3: it would be 13 and 27."""
    model = describe_model(name)
    defaults = model.defaults
    schedule = make_schedule(
        defaults.scheduler,
        num_inference_steps=defaults.num_inference_steps,
        flow_shift=defaults.flow_shift(defaults.width, defaults.height),
        config=model.configs["scheduler"],
    )
    assert model.kind.boundary_ratio is not None
    is_first = np.asarray(schedule.timesteps) >= 1000 * model.kind.boundary_ratio
    assert (is_first.sum(), (~is_first).sum()) == steps
    assert is_first[0]
    assert not is_first[-1]


def test_a_picture_of_any_ratio_has_the_shift_of_its_area():
    assert describe_model("wan2.1-i2v-14b-720p").defaults.flow_shift(608, 1472) == 5.0


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_a_known_model_says_what_it_is(name):
    model = describe_model(name)
    assert model.kind == KNOWN_MODELS[name].kind
    assert list(model.configs) == [*model.kind.components, "scheduler"]
    assert model.folder is None


def test_what_a_file_leaves_out_is_diffusers_default_here_and_in_the_transformer():
    arguments = inspect.signature(WanTransformer3DModel.__init__).parameters
    for name, value in TRANSFORMER_DEFAULTS.items():
        plain = tuple(value) if isinstance(value, list) else value
        assert arguments[name].default == plain == getattr(TransformerConfig(), name), name
