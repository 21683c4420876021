"""wan-tiny: the embedded default model, its data, its recipe and its judge.

Importing this costs nothing: it holds one path.
"""

from pathlib import Path

# A diffusers-format folder, at most 8 MB: model_index.json, tokenizer, text_encoder, transformer,
# vae, scheduler, and generation_defaults.json with what a request leaves open (size, frames, steps,
# guidance scale, flow shift).
WAN_TINY_PATH = Path(__file__).parent / "wan-tiny"
