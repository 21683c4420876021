"""The embedded models: their data, their recipes and their judge.

Importing this costs nothing: it holds two paths. Each is of a folder in diffusers' format, at most
8 MB: model_index.json, tokenizer, text_encoder, transformer, vae, scheduler, and
generation_defaults.json with what a request leaves open (size, frames, steps, guidance scale, flow
shift).
"""

from pathlib import Path

# Text to video, in the architecture of Wan 2.1: the default model.
WAN_TINY_PATH = Path(__file__).parent / "wan-tiny"
# Text and image to video, in the architecture of Wan 2.2's TI2V-5B.
WAN_TINY_TI2V_PATH = Path(__file__).parent / "wan-tiny-ti2v"
