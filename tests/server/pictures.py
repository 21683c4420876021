"""Pictures for tests, and how to send one as clients do."""

import base64
import io

import numpy as np
from PIL import Image

from wan_tpu.media import digest_of


def picture(seed=0, size=(16, 16), kind="PNG"):
    """A small picture of noise as the bytes of a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def large_picture(num_bytes, seed=0):
    """So many bytes that begin as a PNG does: nothing here decodes them."""
    return picture(seed)[:16] + np.random.default_rng(seed).bytes(num_bytes - 16)


def clip(num_bytes=64):
    """The beginning of an MP4."""
    return b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(num_bytes - 32)


def data_url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def create_with(server, data, prompt="x", num_inference_steps=2, **fields):
    """Sends a job with a file in a form; the answer whatever it is."""
    form = {"prompt": prompt, "num_inference_steps": num_inference_steps, **fields}
    files = {name: (None, str(value)) for name, value in form.items()}
    files["input_reference"] = ("picture", data, "application/octet-stream")
    return server.client.post("/v1/videos", files=files)


def accepted(response):
    assert response.status_code == 200, response.text
    return response.json()


def uploads(server):
    """Digests of the files in the folder of uploads."""
    return {f"sha256:{path.name}" for path in (server.data_dir / "uploads").iterdir()}


def has(server, data):
    return digest_of(data) in uploads(server)
