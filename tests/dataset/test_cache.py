"""Files of encoded samples: what they are called, what is in them, and that they are whole."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from wan_tpu.dataset.cache import LATENTS, SAMPLES, TEXT, TEXTS, Cache, Made, key_of
from wan_tpu.errors import InputError

MADE = Made(encoders={"vae": "a", "text_encoder": "b"}, dtype="float32", vae_dtype="float32")
CLIP = {"kind": "clip", "start": "0", "size": [48, 32, 5], "fps": "16", "stored_fps": None}
LATENT = np.linspace(-3, 3, 2 * 4 * 6 * 16, dtype=np.float32).reshape(2, 4, 6, 16)


@pytest.fixture
def cache(tmp_path):
    made = Cache(tmp_path)
    made.make_folders()
    return made


def test_numbers_come_back_as_bfloat16_and_the_same_bytes_are_written(cache):
    made = MADE.sample(media="c", clip=CLIP)
    key = cache.write(SAMPLES, made, {LATENTS: LATENT})
    data = cache.path(SAMPLES, key).read_bytes()
    assert cache.has(SAMPLES, key)
    got = cache.read(SAMPLES, key)
    assert got.keys() == {LATENTS}
    assert got[LATENTS].dtype == np.float32
    np.testing.assert_array_equal(got[LATENTS], LATENT.astype("bfloat16").astype(np.float32))
    assert cache.write(SAMPLES, made, {LATENTS: LATENT}) == key
    assert cache.path(SAMPLES, key).read_bytes() == data


@pytest.mark.parametrize(
    "other",
    [
        MADE.sample(media="d", clip=CLIP),
        MADE.sample(media="c", clip=CLIP | {"start": "1/16"}),
        MADE.sample(media="c", clip=CLIP | {"fps": "24"}),
        MADE.sample(media="c", clip=CLIP | {"size": [32, 48, 5]}),
        Made(encoders={"vae": "x"}, dtype="float32", vae_dtype="float32").sample(
            media="c", clip=CLIP
        ),
        Made(encoders={"vae": "a"}, dtype="float32", vae_dtype="bfloat16").sample(
            media="c", clip=CLIP
        ),
        Made(encoders={"vae": "a"}, dtype="float32", vae_dtype="float32", inputs=("image",)).sample(
            media="c", clip=CLIP
        ),
        Made(
            encoders={"vae": "a", "image_encoder": "e"}, dtype="float32", vae_dtype="float32"
        ).sample(media="c", clip=CLIP),
    ],
)
def test_whatever_makes_a_sample_is_in_its_name(other):
    made = MADE.sample(media="c", clip=CLIP)
    assert key_of(other) != key_of(made)
    # The text encoder makes no latents: another one leaves them as they are.
    text = Made(encoders={"vae": "a", "text_encoder": "z"}, dtype="bfloat16", vae_dtype="float32")
    assert key_of(text.sample(media="c", clip=CLIP)) == key_of(made)


def test_a_caption_and_its_encoder_are_in_the_name_of_its_embeddings():
    other = Made(encoders={"text_encoder": "c"}, dtype="float32", vae_dtype="float32")
    rounded = Made(encoders={"text_encoder": "b"}, dtype="bfloat16", vae_dtype="float32")
    keys = {key_of(MADE.text("a fox")), key_of(MADE.text("a dog"))}
    keys |= {key_of(other.text("a fox")), key_of(rounded.text("a fox"))}
    assert len(keys) == 4
    assert key_of(
        Made(encoders={"text_encoder": "b"}, dtype="float32", vae_dtype="x").text("")
    ) == (key_of(MADE.text("")))


@pytest.mark.parametrize("damage", ["gone", "short", "renamed", "junk"])
def test_what_is_not_whole_is_not_there(cache, damage):
    key = cache.write(TEXTS, MADE.text("a fox"), {TEXT: LATENT[0, 0]})
    path = cache.path(TEXTS, key)
    data = path.read_bytes()
    path.unlink()
    if damage == "short":
        path.write_bytes(data[:-1])
    elif damage == "junk":
        path.write_bytes(b"junk")
    elif damage == "renamed":
        key = key_of(MADE.text("a dog"))
        cache.path(TEXTS, key).write_bytes(data)
    assert not cache.has(TEXTS, key)
    if damage != "renamed":
        with pytest.raises(InputError, match="prepare makes it again"):
            cache.read(TEXTS, key)


FULL = """
import pathlib, resource, sys
import numpy as np
from tests.dataset.test_cache import LATENT, MADE
from wan_tpu.dataset.cache import TEXT, TEXTS, Cache
from wan_tpu.errors import OutputError
cache = Cache(pathlib.Path(sys.argv[1]))
cache.write(TEXTS, MADE.text("short"), {TEXT: LATENT[0, 0]})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    cache.write(TEXTS, MADE.text("long"), {TEXT: LATENT})
except OutputError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(cache):
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(cache.folder)],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"cannot write {cache.folder}")
    assert line.endswith("File too large")
    names = [path.name for path in (cache.folder / TEXTS).iterdir()]
    assert names == [f"{key_of(MADE.text('short'))}.safetensors"]
