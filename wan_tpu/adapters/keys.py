"""What one key of an adapter's file means: which tensor of which transformer, and which part of it.

The styles in the wild differ in what stands in front of a module's name (`diffusion_model.`,
`lora_unet_`, `transformer.`, nothing), in whose names the modules have (the Wan team's or
diffusers'), and in the last words (`lora_A.weight`, `lora_down.weight`, `diff`). Each of the three
is read by itself, so that mixtures of them, which exist, are read, too.
"""

import dataclasses
import re

from wan_tpu.checkpoints.original_names import transformer_names
from wan_tpu.family import TRANSFORMER, TRANSFORMER_2

DOWN, UP, ALPHA, DIFF, BIAS_OF_UP = "down", "up", "alpha", "diff", "bias of up"
MAGNITUDE = "magnitude"
HADAMARD = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
KRONECKER = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
"""Of LoHa and LoKr the parts are called as their keys are, by all tools."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key, understood.

    Attributes:
        text: as it stands in the file.
        expert: of two transformers the one that the key names; None where it names none.
        tensor: that it changes, by diffusers' name.
        module: whose that is, by diffusers' name, for patterns of a configuration.
        part: `DOWN`, `UP`, `ALPHA`, `DIFF`, `BIAS_OF_UP`, `MAGNITUDE`, or one of `HADAMARD` or
            `KRONECKER`.
        label: of PEFT's: the adapter's own name within the key; empty for none.
        style: what the way of writing is called.
    """

    text: str
    expert: str | None
    tensor: str
    module: str
    part: str
    label: str = ""
    style: str = ""


_LAST_WORDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\.lora_A(?:\.(?P<label>[^.]+))?\.weight$"), DOWN),
    (re.compile(r"\.lora_B(?:\.(?P<label>[^.]+))?\.weight$"), UP),
    (re.compile(r"\.lora_B(?:\.(?P<label>[^.]+))?\.bias$"), BIAS_OF_UP),
    (re.compile(r"\.lora[_.]down\.weight$"), DOWN),
    (re.compile(r"\.lora[_.]up\.weight$"), UP),
    (re.compile(r"\.alpha$"), ALPHA),
    (re.compile(r"\.dora_scale$"), MAGNITUDE),
    (re.compile(r"\.lora_magnitude_vector(?:\.(?!weight$)[^.]+)?(?:\.weight)?$"), MAGNITUDE),
    *((re.compile(rf"\.{part}$"), part) for part in (*HADAMARD, *KRONECKER)),
    (re.compile(r"\.(?P<diff>diff(?:_b|_m)?)$"), DIFF),
)
_TENSOR_OF_DIFF = {"diff": ".weight", "diff_b": ".bias", "diff_m": ".modulation"}
_TABLES = ("modulation", "scale_shift_table", "emb_pos", "pos_embed")
"""Parameters that are no module's weight: their whole difference is called by their own name."""

_IN_FRONT: tuple[tuple[str, str | None], ...] = (
    ("base_model.model.", None),
    ("model.diffusion_model.", None),
    ("diffusion_model.", None),
    ("transformer_1.", TRANSFORMER),
    ("transformer_2.", TRANSFORMER_2),
    ("transformer.", None),  # diffusers writes so whichever of the two it is
    ("pipe.dit2.", TRANSFORMER_2),
    ("pipe.dit.", None),
    ("dit.", None),
    ("model.", None),
    ("module.", None),
    ("_orig_mod.", None),
)
"""What may stand in front of a module, one after the other, and the expert that it means."""

KOHYA = "lora_unet_"
_COMPOUNDS = (
    "self_attn", "cross_attn", "k_img", "v_img", "norm_q", "norm_k", "norm_k_img", "img_emb",
    "time_embedding", "text_embedding", "time_projection", "patch_embedding", "emb_pos",
    "to_q", "to_k", "to_v", "to_out", "add_k_proj", "add_v_proj", "norm_added_k", "proj_out",
    "condition_embedder", "time_embedder", "text_embedder", "image_embedder", "time_proj",
    "linear_1", "linear_2", "scale_shift_table", "pos_embed",
)  # fmt: skip
"""Words with an underline of their own, in names whose dots have become underlines."""
_WORD = re.compile(
    rf"(?:{'|'.join(sorted(_COMPOUNDS, key=len, reverse=True))})(?=[._]|$)|[^._]+",
)

_OF_WAN = re.compile(
    r"blocks\.\d+\.(?:attn[12]\.|ffn\.|norm2\.|scale_shift_table$)"
    r"|condition_embedder\.(?:time_embedder|text_embedder|time_proj|image_embedder)\."
    r"|patch_embedding\.|proj_out\.|scale_shift_table$"
)


def read_key(text: str) -> Key | None:
    """What a key means; None for one that is none of an adapter of a Wan transformer."""
    found = ((pattern.search(text), part) for pattern, part in _LAST_WORDS)
    last, part = next(((match, part) for match, part in found if match), (None, ""))
    if last is None:
        return None
    expert, module, front = _module(text[: last.start()])
    groups = last.groupdict()
    end = _TENSOR_OF_DIFF.get(groups.get("diff") or "", ".weight")
    if part == BIAS_OF_UP:
        end = ".bias"
    original = module if module.rpartition(".")[2] in _TABLES else module + end
    tensor = transformer_names([original])[original]
    if not _OF_WAN.match(tensor):
        return None
    return Key(
        text=text,
        expert=expert,
        tensor=tensor,
        module=tensor.rpartition(".")[0] if tensor.endswith((".weight", ".bias")) else tensor,
        part=part,
        label=groups.get("label") or "",
        style=_style(front, last[0], groups.get("label") or ""),
    )


def _module(name: str) -> tuple[str | None, str, str]:
    """The expert and the module of a name without its last words, and what stood in front."""
    if name.startswith(KOHYA):
        return None, ".".join(_WORD.findall(name.removeprefix(KOHYA))), KOHYA
    expert, rest = None, name
    while True:
        for front, means in _IN_FRONT:
            if rest.startswith(front):
                expert, rest = means or expert, rest.removeprefix(front)
                break
        else:
            return expert, rest, name.removesuffix(rest)


def _style(front: str, last: str, label: str) -> str:
    """What this way of writing is called, for the log alone."""
    if front == KOHYA:
        return "kohya"
    if front.startswith("base_model.model."):
        return "PEFT"
    if front.startswith("transformer"):
        return "diffusers"
    if label:
        return "DiffSynth"
    return "ComfyUI" if ".lora_A" in last or ".lora_B" in last else "lightx2v"
