"""Downloads: no file too many, the disk looked at first, a busy hub asked again."""

import json

import pytest
import torch

from tests.checkpoint_factory import make_random_model
from tests.checkpoints.fake_hub import COMMIT, FakeHub, ask, files_of, serving
from tests.damaged_models import copy_wan_tiny
from tests.original_checkpoints import original, save
from wan_tpu.checkpoints.known import KNOWN_MODELS

REPOSITORY = "someone/some-wan"
PLAIN = "diffusion_pytorch_model"
WEIGHTS = ["text_encoder/model{}.safetensors"] + [
    f"{component}/{PLAIN}{{}}.safetensors" for component in ("transformer", "vae")
]


@pytest.fixture
def hub(tmp_path):
    """wan-tiny with whatever else repositories have."""
    files = files_of(copy_wan_tiny(tmp_path / "model"))
    for name in WEIGHTS:
        files[name.format(".fp16")] = b"x" * 10
    files |= {f"transformer/{PLAIN}.bin": b"x", "README.md": b"x", "assets/a.png": b"x"}
    files |= {f"{PLAIN}.safetensors": b"x", "tokenizer/spiece.model": b"x"}
    return FakeHub(REPOSITORY, files)


def weights_fetched(hub):
    return [name for name in hub.fetched() if name.endswith((".safetensors", ".bin"))]


def test_only_the_needed_files_are_fetched(hub, tmp_path):
    with serving(hub) as address:
        found, log = ask(address, tmp_path / "home", REPOSITORY)
    assert found["revision"] == COMMIT
    assert weights_fetched(hub) == sorted(name.format("") for name in WEIGHTS)
    others = set(hub.fetched()) - set(weights_fetched(hub))
    assert {"tokenizer/spiece.model", "tokenizer/tokenizer.json"} < others
    assert not others & {"README.md", "assets/a.png"}
    assert f"downloading the weights of {REPOSITORY}: 4 files, 7.8 MB, to " in log


def test_a_variant_is_fetched_instead(hub, tmp_path):
    with serving(hub) as address:
        ask(address, tmp_path / "home", REPOSITORY, variant="fp16")
    assert weights_fetched(hub) == sorted(name.format(".fp16") for name in WEIGHTS)


def test_a_variant_of_one_component_and_the_plain_files_of_the_others(hub, tmp_path):
    for name in WEIGHTS[::2]:
        del hub.files[name.format(".fp16")]
    with serving(hub) as address:
        _, log = ask(address, tmp_path / "home", REPOSITORY, variant="fp16")
    assert weights_fetched(hub) == [
        WEIGHTS[0].format(""), WEIGHTS[1].format(".fp16"), WEIGHTS[2].format("")
    ]  # fmt: skip
    assert "no variant fp16 of text_encoder and vae, where the plain files are taken" in log


@pytest.mark.parametrize("kind", ["flf2v", "i2v-a14b"])
def test_the_weights_of_every_component_of_a_kind_are_fetched(tmp_path, kind):
    """And of a variant, those that have it; nothing of a folder that the kind does not read."""
    hub = FakeHub(REPOSITORY, files_of(make_random_model(tmp_path / "model", kind)))
    others = {
        "i2v-a14b": [f"image_encoder/{name}" for name in ("config.json", "model.safetensors")],
        "flf2v": [f"transformer_2/{name}" for name in ("config.json", f"{PLAIN}.safetensors")],
    }[kind]
    hub.files |= dict.fromkeys(others, b"{}")
    expert = f"transformer{'_2' if kind == 'i2v-a14b' else ''}"
    hub.files[f"{expert}/{PLAIN}.fp16.safetensors"] = b"x"
    with serving(hub) as address:
        found, log = ask(address, tmp_path / "home", REPOSITORY, variant="fp16")
    weights = [name for name in hub.files if name.endswith(".safetensors") and name not in others]
    weights.remove(f"{expert}/{PLAIN}.safetensors")
    assert weights_fetched(hub) == sorted(weights)
    assert found[expert].endswith(expert)
    assert "where the plain files are taken" in log


def test_a_variant_that_is_not_there_is_refused_before_any_weights(hub, tmp_path):
    with serving(hub) as address:
        found, _ = ask(address, tmp_path / "home", REPOSITORY, variant="bf16")
    assert found["error"] == f"unknown variant of {REPOSITORY} 'bf16'; known: fp16"
    assert not weights_fetched(hub)


def test_a_model_of_another_kind_is_refused_before_any_weights(hub, tmp_path):
    hub.files["model_index.json"] = json.dumps({"_class_name": "WanVACEPipeline"}).encode()
    with serving(hub) as address:
        found, _ = ask(address, tmp_path / "home", REPOSITORY)
    assert "is of a WanVACEPipeline (VACE); WanPipeline" in found["error"]
    assert not weights_fetched(hub)


def test_describing_fetches_configurations_alone(hub, tmp_path):
    with serving(hub) as address:
        ask(address, tmp_path / "home", REPOSITORY, call="describe")
    assert not weights_fetched(hub)
    assert "transformer/config.json" in hub.fetched()


def test_what_is_in_the_cache_is_not_fetched_again_nor_needs_the_hub(hub, tmp_path):
    with serving(hub) as address:
        ask(address, tmp_path / "home", REPOSITORY)
        before = len(hub.fetched())
        hub.requests.clear()
        _, log = ask(address, tmp_path / "home", REPOSITORY)
        assert before > 0
        assert not hub.fetched()
        assert "downloading" not in log
    found, _ = ask(address, tmp_path / "home", REPOSITORY)  # nobody serves there any more
    assert found["revision"] == COMMIT


def test_a_disk_that_is_too_small_is_said_before_the_download(hub, tmp_path):
    hub.files[WEIGHTS[1].format("")] = 10**16
    with serving(hub) as address:
        found, _ = ask(address, tmp_path / "home", REPOSITORY)
    assert f"the weights of {REPOSITORY} need 10000000.0 GB in " in found["error"]
    assert " GB are missing; HF_HOME names another place" in found["error"]
    assert not weights_fetched(hub)


@pytest.mark.parametrize("part", ["/revision/", "/tree/", "/resolve/"])
def test_a_busy_hub_is_asked_again(hub, tmp_path, part):
    """Red when the first 429 or 503 is the last word."""
    hub.faults[part] = [(429, {"Retry-After": "1"}), (503, {})]
    with serving(hub) as address:
        found, log = ask(address, tmp_path / "home", REPOSITORY)
    assert found.get("revision") == COMMIT, found
    assert not hub.faults[part]
    assert len(weights_fetched(hub)) == 3
    if part == "/revision/":
        assert f"the hub answered 429 when asked for {REPOSITORY}; asking again in 1 s (1 of" in log
        assert "the hub answered 503" in log


def test_a_hub_that_stays_busy_is_given_up(hub, tmp_path):
    hub.faults["/revision/"] = [(503, {})] * 50
    with serving(hub) as address:
        found, log = ask(address, tmp_path / "home", REPOSITORY)
    assert f"{REPOSITORY} is not in the cache and cannot be downloaded" in found["error"]
    assert "503" in found["error"]
    assert log.count("asking again") == 5


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(hub, tmp_path):
    hub.faults["/revision/"] = [(429, {"Retry-After": "3600"})] * 9
    with serving(hub) as address:
        found, log = ask(address, tmp_path / "home", REPOSITORY)
    assert "429" in found["error"]
    assert "asking again" not in log


def test_a_hub_that_is_not_there_is_asked_three_times(tmp_path):
    found, log = ask("http://127.0.0.1:9", tmp_path / "home", REPOSITORY)
    assert f"{REPOSITORY} is not in the cache and cannot be downloaded" in found["error"]
    assert log.count("could not be reached") == 2


def test_an_original_repository_names_the_other(tmp_path):
    hub = FakeHub(REPOSITORY, {"config.json": b"{}", "Wan2.1_VAE.pth": b"x"})
    with serving(hub) as address:
        found, _ = ask(address, tmp_path / "home", REPOSITORY)
    assert f"the hub's {REPOSITORY} is a model in Wan's original format" in found["error"]
    assert "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in found["error"]


def test_wans_original_repository_names_its_twin(tmp_path):
    hub = FakeHub("Wan-AI/Wan2.2-I2V-A14B", {"high_noise_model/config.json": b"{}"})
    with serving(hub) as address:
        found, _ = ask(address, tmp_path / "home", hub.repository)
    assert found["error"].startswith(
        "model_index.json is missing: the hub's Wan-AI/Wan2.2-I2V-A14B is a model in Wan's "
        "original format; Wan-AI/Wan2.2-I2V-A14B-Diffusers is the same in diffusers format"
    )


@pytest.fixture
def known_hub(tmp_path):
    """The 1.3B's repository, with wan-tiny's files in place of the large ones."""
    known = KNOWN_MODELS["wan2.1-t2v-1.3b"]
    files = files_of(copy_wan_tiny(tmp_path / "known"))
    for component in known.kind.components:
        files[f"{component}/config.json"] = json.dumps(dict(known.configs[component])).encode()
    del files["generation_defaults.json"]
    return FakeHub(known.hub_id, files)


@pytest.fixture
def small_file(tmp_path):
    """A file whose shapes are those of the 1.3B, but with a matrix for all that do not tell."""
    tensors = {f"blocks.{n}.self_attn.q.weight": torch.zeros(1) for n in range(30)} | {
        "patch_embedding.weight": torch.zeros(1536, 16, 1, 2, 2, dtype=torch.bfloat16),
        "blocks.0.ffn.0.weight": torch.zeros(8960, 1, dtype=torch.bfloat16),
        "text_embedding.0.weight": torch.zeros(1, 4096, dtype=torch.bfloat16),
    }
    return save(tensors, tmp_path / "wan2.1_t2v_1.3B_bf16.safetensors")


def test_a_single_file_takes_everything_else_from_the_known_model(known_hub, small_file, tmp_path):
    with serving(known_hub) as address:
        found, log = ask(address, tmp_path / "home", str(small_file))
    assert found["transformer"] == str(small_file)
    assert found["vae"].startswith(found["folder"])
    assert found["revision"] is None
    assert weights_fetched(known_hub) == [WEIGHTS[0].format(""), WEIGHTS[2].format("")]
    assert "text encoder, autoencoder, tokenizer from Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in log


def test_a_single_file_offline_names_what_it_needs(small_file, tmp_path):
    found, _ = ask("http://127.0.0.1:9", tmp_path / "home", str(small_file), HF_HUB_OFFLINE="1")
    assert found["error"].startswith(
        f"{small_file} has no text encoder and no autoencoder and no tokenizer; "
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers is not in the cache and cannot be downloaded: "
    )


def test_an_original_folder_offline_says_what_to_do_about_its_pickles(small_file, tmp_path):
    folder = tmp_path / "Wan2.1-T2V-1.3B"
    folder.mkdir()
    small_file.rename(folder / f"{PLAIN}.safetensors")
    for name in ("models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"):
        (folder / name).write_bytes(b"pickle")
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    (folder / "google" / "umt5-xxl" / "tokenizer.json").write_text("{}")
    found, _ = ask("http://127.0.0.1:9", tmp_path / "home", str(folder), HF_HUB_OFFLINE="1")
    assert (
        "has no text encoder and no autoencoder that can be used (Wan2.1_VAE.pth, "
        "models_t5_umt5-xxl-enc-bf16.pth: pickle files can run code; convert them to safetensors, "
        "or take those of the repository in diffusers format); Wan-AI/Wan2.1-T2V-1.3B-Diffusers is "
        "not in the cache"
    ) in found["error"]


def test_safetensors_beside_the_pickles_are_taken(known_hub, small_file, tmp_path):
    folder = tmp_path / "Wan2.1-T2V-1.3B"
    folder.mkdir()
    small_file.rename(folder / f"{PLAIN}.safetensors")
    (folder / "Wan2.1_VAE.pth").write_bytes(b"pickle")
    save(original("vae"), folder / "wan_2.1_vae.safetensors")
    with serving(known_hub) as address:
        found, _ = ask(address, tmp_path / "home", str(folder))
    assert found["vae"] == str(folder / "wan_2.1_vae.safetensors")
    assert weights_fetched(known_hub) == [WEIGHTS[0].format("")]
