"""Names of models: embedded, folders, hub ids in the cache, known ones; and what is refused."""

import json
import pathlib
import shutil

import pytest

from tests.checkpoint_factory import make_random_checkpoint
from wan_tpu import family
from wan_tpu.checkpoints.models import (
    KNOWN_MODELS,
    WAN_NEGATIVE_PROMPT,
    describe_model,
    open_model,
)
from wan_tpu.errors import CheckpointError, UnknownNameError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_random_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def editable(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_folder_without_own_defaults_has_wans(checkpoint):
    model = open_model(str(checkpoint))
    assert model.defaults.num_inference_steps == 50
    assert model.defaults.guidance_scale == 5.0
    assert model.defaults.negative_prompt == WAN_NEGATIVE_PROMPT
    assert model.defaults.flow_shift(1280, 720) == 5.0
    assert model.defaults.flow_shift(720, 1280) == 5.0
    assert model.defaults.flow_shift(832, 480) == 5.0
    assert model.component_folder("vae").is_dir()


def test_wan_tiny_has_its_own_defaults():
    defaults = open_model("wan-tiny").defaults
    assert (defaults.width, defaults.height, defaults.num_frames, defaults.fps) == (64, 64, 17, 8)
    assert defaults.negative_prompt == ""


def test_the_second_embedded_model_takes_pictures():
    model = open_model("wan-tiny-ti2v")
    assert model.kind == family.TEXT_IMAGE_TO_VIDEO
    assert model.defaults.num_frames % 4 == 1
    assert "generation_defaults.json" in model.defaults_from.values()


@pytest.mark.parametrize("name", ["wan-tiny", "wan-tiny-ti2v"])
def test_a_file_of_an_embedded_models_transformer_is_recognised(name, tmp_path):
    """By its shapes; everything else comes from the package."""
    own = open_model(name)
    (path,) = own.component_folder("transformer").glob("*.safetensors")
    tuned = shutil.copy(path, tmp_path / "tuned.safetensors")
    model = open_model(str(tuned))
    assert (model.kind, model.folder, model.files) == (own.kind, own.folder, {"transformer": tuned})


def test_known_models_are_described_offline():
    for name in KNOWN_MODELS:
        model = describe_model(name)
        assert model.folder is None
        with pytest.raises(CheckpointError, match="no files here"):
            model.component_folder("vae")


@pytest.mark.parametrize("name", ["wan-huge", "./nowhere", "/nowhere/at/all", "~nobody/x"])
def test_unknown_names_list_what_exists(name):
    with pytest.raises(UnknownNameError, match=r"wan-tiny, wan-tiny-ti2v, wan2\.1-t2v-1\.3b"):
        open_model(name)


def test_hub_id_from_the_cache_without_network(checkpoint, tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out; the network is switched off."""
    import huggingface_hub.constants as constants

    repository = tmp_path / "models--someone--some-wan"
    shutil.copytree(checkpoint, repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = open_model("someone/some-wan")
    assert model.folder == repository / "snapshots" / "abc123"
    with pytest.raises(CheckpointError, match="nobody/no-wan is not in the cache"):
        open_model("nobody/no-wan")


@pytest.fixture
def hub_cache(checkpoint, tmp_path, monkeypatch):
    """Two commits of one model, as huggingface_hub keeps them; the network is switched off."""
    import huggingface_hub.constants as constants

    repository = tmp_path / "models--someone--some-wan"
    for commit in (OLD, NEW):
        shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    (repository / "refs" / "v1").write_text(OLD)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository


OLD, NEW = "0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98"


@pytest.mark.parametrize(
    ("revision", "commit"), [("", NEW), ("@main", NEW), ("@v1", OLD), (f"@{OLD}", OLD)]
)
@pytest.mark.parametrize("load", [open_model, describe_model])
def test_a_model_of_the_hub_at_a_revision(hub_cache, load, revision, commit):
    model = load(f"someone/some-wan{revision}")
    assert model.folder == hub_cache / "snapshots" / commit
    assert model.revision == commit


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/some-wan@v9", "some-wan@v9 is not in the cache"),
        ("someone/some-wan@", "no revision after @, for example someone/some-wan@main"),
    ],
)
def test_a_revision_that_is_not_there(hub_cache, name, message):
    with pytest.raises(CheckpointError, match=message):
        open_model(name)


def test_weights_that_are_not_in_the_cache_offline(hub_cache):
    """As after `describe_model`: the configurations are there."""
    weights = hub_cache / "snapshots" / NEW / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    message = r"no \.safetensors file in someone/some-wan/vae in the cache; the hub cannot be asked"
    with pytest.raises(CheckpointError, match=message):
        open_model("someone/some-wan")


def test_a_known_model_may_be_pinned(hub_cache, tmp_path, caplog):
    known = KNOWN_MODELS["wan2.1-t2v-1.3b"]
    hub_cache.rename(tmp_path / f"models--{known.hub_id.replace('/', '--')}")
    assert describe_model("wan2.1-t2v-1.3b@v1").configs["transformer"] == known.transformer
    with caplog.at_level("INFO"):
        assert open_model("wan2.1-t2v-1.3b@v1").revision == OLD
    assert f"wan2.1-t2v-1.3b@{OLD} keeps it there" in caplog.text


def test_an_at_sign_in_a_folders_name_is_no_revision(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "my@models" / "wan")
    model = open_model("my@models/wan")
    assert model.folder == pathlib.Path("my@models/wan")
    assert model.revision is None


def test_what_is_not_of_the_hub_has_no_revision(checkpoint):
    assert open_model(str(checkpoint)).revision is None
    assert open_model("wan-tiny").revision is None


def test_broken_and_missing_configurations(editable):
    (editable / "vae" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"vae/config\.json cannot be read"):
        open_model(str(editable))
    (editable / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"vae/config\.json is missing"):
        open_model(str(editable))
