"""What can be set, and what is refused before anything starts."""

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from server.settings import Settings


def test_the_defaults_are_loopback_and_wan_tiny():
    settings = Settings()
    assert settings.is_loopback
    assert settings.model == "wan-tiny"
    assert settings.database.startswith("sqlite:////")
    assert settings.hosts == {"localhost", "127.0.0.1", "[::1]"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com"])
def test_without_keys_only_loopback(host, tmp_path):
    with pytest.raises(ValidationError, match="WAN_TPU_API_KEYS_FILE"):
        Settings(host=host)
    assert Settings(host=host, api_keys_file=tmp_path / "keys").hosts == {"*"}


def test_a_slice_of_a_fleet_has_nothing_that_keys_would_protect():
    fleet = {"fleet": "temporal://127.0.0.1:7233/default", "files": "s3://videos"}
    assert not Settings(host="0.0.0.0", role="slice", **fleet).is_loopback
    with pytest.raises(ValidationError, match="WAN_TPU_API_KEYS_FILE"):
        Settings(host="0.0.0.0", role="api", database_url="postgresql://x/y", **fleet)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_keys(host):
    assert Settings(host=host).is_loopback


def test_lists_are_words_with_commas(monkeypatch):
    monkeypatch.setenv("WAN_TPU_WARM_UP", "64x64x17, 128x64x5")
    monkeypatch.setenv("WAN_TPU_ALLOWED_HOSTS", "Video.Example")
    settings = Settings()
    assert settings.warm_up == ("64x64x17", "128x64x5")
    assert "video.example" in settings.hosts


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WAN_TPU_PORT": "http"}, "WAN_TPU_PORT: "),
        ({"WAN_TPU_WARM_UP": "64x64"}, "WIDTHxHEIGHTxFRAMES"),
        ({"WAN_TPU_LAYOUT": "xp3"}, "unknown layout 'xp3'"),
        ({"WAN_TPU_ATTENTION": "flash9"}, "unknown attention 'flash9'; known: auto, reference"),
        ({"WAN_TPU_ATTENTION": "flash-int8:x"}, "must be flash-int8[:STEPS[:LAYERS]]"),
        ({"WAN_TPU_VAE_DTYPE": "int8"}, "unknown VAE dtype 'int8'; known: bfloat16, float32"),
        ({"WAN_TPU_QUANTIZE": "int4"}, "unknown quantization 'int4'; known: int8"),
        ({"WAN_TPU_HOST": "0.0.0.0"}, "WAN_TPU_API_KEYS_FILE"),
        ({"WAN_TPU_MODEL": "wan-huge"}, "unknown model 'wan-huge'; known: wan-tiny"),
        ({"WAN_TPU_API_KEYS_FILE": "/nowhere/keys"}, "cannot read"),
        ({"WAN_TPU_ADAPTERS": "/nowhere/a"}, "WAN_TPU_ADAPTERS=/nowhere/a: there is no folder"),
        ({"WAN_TPU_WARM_UP": "60x64x17"}, "width must be a positive multiple of 16"),
        ({"WAN_TPU_WARM_UP": "4096x4096x17"}, "WAN_TPU_WARM_UP=4096x4096x17: "),
        ({"WAN_TPU_MAX_WORK": "inf"}, "WAN_TPU_MAX_WORK: Input should be a finite number"),
        ({"WAN_TPU_MAX_WORK": "nan"}, "WAN_TPU_MAX_WORK: Input should be a finite number"),
        ({"WAN_TPU_DRAIN_SECONDS": "inf"}, "WAN_TPU_DRAIN_SECONDS: "),
        ({"WAN_TPU_EXPIRY_SECONDS": "0"}, "WAN_TPU_EXPIRY_SECONDS: "),
        ({"WAN_TPU_EXPIRY_SECONDS": "1e300"}, "WAN_TPU_EXPIRY_SECONDS: "),
        ({"WAN_TPU_ALLOWED_HOSTS": "wan.example.com:8443"}, "'wan.example.com:8443', expected"),
        ({"WAN_TPU_ALLOWED_HOSTS": "https://b.example.com"}, "WAN_TPU_ALLOWED_HOSTS has"),
        ({"WAN_TPU_ALLOWED_HOSTS": "a.*.example.com"}, "WAN_TPU_ALLOWED_HOSTS has"),
        ({"WAN_TPU_ALLOWED_HOSTS": "b.example.com/wan"}, "WAN_TPU_ALLOWED_HOSTS has"),
        ({"WAN_TPU_CORS_ORIGINS": "app.example.com"}, "WAN_TPU_CORS_ORIGINS has"),
        ({"WAN_TPU_CORS_ORIGINS": "https://app.example.com/"}, "WAN_TPU_CORS_ORIGINS has"),
        ({"WAN_TPU_CORS_ORIGINS": "*"}, "WAN_TPU_CORS_ORIGINS=* without"),
        ({"WAN_TPU_SERVED_MODEL_NAME": "two words"}, "WAN_TPU_SERVED_MODEL_NAME: "),
    ],
)
def test_a_wrong_setting_is_one_line_on_stderr(environment, words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "server"],
        env={**os.environ, "WAN_TPU_DATA_DIR": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("time=")]
    assert len(said) == 1, done.stderr


def test_help_names_every_setting():
    done = subprocess.run(
        [sys.executable, "-m", "server", "--help"], capture_output=True, text=True, check=True
    )
    for name in Settings.model_fields:
        assert f"WAN_TPU_{name.upper()} " in done.stdout


@pytest.mark.parametrize("text", ["never", "Never", "inf"])
def test_videos_can_be_kept_for_ever(monkeypatch, text):
    monkeypatch.setenv("WAN_TPU_EXPIRY_SECONDS", text)
    assert Settings().expiry_seconds is None


def test_a_unix_socket_needs_no_keys_but_then_others_names_are_refused(tmp_path):
    """A proxy may stand before it, whose pages anybody could write."""
    socket = "/run/wan-tpu.sock"
    assert "localhost" in Settings(unix_socket=socket).hosts
    assert "*" not in Settings(unix_socket=socket).hosts
    assert Settings(unix_socket=socket, api_keys_file=tmp_path / "keys").hosts == {"*"}
    named = Settings(unix_socket=socket, allowed_hosts="wan.example.com")
    assert "wan.example.com" in named.hosts
