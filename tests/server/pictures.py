"""Pictures and clips for tests, and how to send one as clients do."""

import base64
import functools
import io
import pathlib
import tempfile
import zlib

import numpy as np
from PIL import Image

from wan_tpu.media import digest_of
from wan_tpu.pipeline.video_file import VideoWriter


def picture(seed=0, size=(16, 16), kind="PNG"):
    """A small picture of noise as the bytes of a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def large_picture(num_bytes, seed=0):
    """A PNG of so many bytes: most of it is what programs pass over."""
    small = picture(seed)
    head, end = small[:-12], small[-12:]  # the last chunk says that the file ends
    content = b"noIs" + np.random.default_rng(seed).bytes(num_bytes - len(small) - 12)
    length = (len(content) - 4).to_bytes(4, "big")
    return head + length + content + zlib.crc32(content).to_bytes(4, "big") + end


@functools.cache
def clip(num_frames=17, size=(64, 64), fps=8, seed=0):
    """A small MP4: a light square moves to the right over a colour."""
    width, height = size
    colour = np.random.default_rng(seed).integers(0, 128, 3)
    frames = np.broadcast_to(colour, (num_frames, height, width, 3)).astype(np.uint8)
    for number, frame in enumerate(frames):
        left = (width - 16) * number // max(num_frames - 1, 1)
        frame[height // 3 : height // 3 + 16, left : left + 16] = 230
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "clip.mp4"
        with VideoWriter(path, fps=fps, width=width, height=height) as writer:
            writer.write(frames)
        return path.read_bytes()


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
