"""What people hand in where an adapter of a Wan transformer is expected, in a few words."""

import re
from collections.abc import Collection

_OTHER_FORMS = (
    (re.compile(r"\.hada_t\d"), "a LoHa with Tucker's decomposition of a kernel"),
    (re.compile(r"\.lokr_t\d"), "a LoKr with Tucker's decomposition of a kernel"),
    (re.compile(r"\.b?oft_"), "an OFT adapter"),
    (re.compile(r"\.lora_mid\."), "a LoCon with a middle part"),
)
_OTHER_MODELS = (
    (re.compile(r"^lora_te\d?_|^text_encoder|^lora_te\."), "a text encoder's"),
    (re.compile(r"vace_(?:blocks|patch_embedding)"), "Wan VACE's, which is not implemented"),
    (
        re.compile(r"(?:down|input|up|output)_blocks|mid(?:dle)?_block"),
        "a U-Net's, as Stable Diffusion has one",
    ),
    (
        re.compile(r"(?:double|single)_blocks|single_transformer_blocks"),
        "a transformer's of Flux's or HunyuanVideo's form",
    ),
    (re.compile(r"joint_(?:transformer_)?blocks"), "Stable Diffusion 3's"),
    (
        re.compile(r"transformer_blocks"),
        "another transformer's, such as LTX-Video, CogVideoX or Qwen-Image",
    ),
    (re.compile(r"(?:^|[._])layers[._]\d+[._]"), "a language model's, or of a model of its form"),
)
_WEIGHTS = re.compile(r"blocks\.0\.(?:self_attn\.q|attn1\.to_q)\.weight$")


def other_form(names: Collection[str]) -> tuple[str, str] | None:
    """Which form of adapter that is not implemented a file has, and a key that shows it."""
    for pattern, form in _OTHER_FORMS:
        found = next(filter(pattern.search, names), None)
        if found is not None:
            return form, found
    return None


def describe_names(names: Collection[str]) -> str:
    """What a file without a single key of an adapter of Wan seems to be; follows its name."""
    if not names:
        return "is empty: no tensors"
    first = next(iter(names))
    if any(map(_WEIGHTS.search, names)):
        return "holds a whole transformer and no adapter; --model takes it"
    of = next((what for pattern, what in _OTHER_MODELS if any(map(pattern.search, names))), None)
    many = "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
    if of is not None:
        return f"is no adapter of a Wan transformer: its keys seem to be {of} ({first})"
    return f"is no adapter of a Wan transformer ({many}, the first is {first})"
