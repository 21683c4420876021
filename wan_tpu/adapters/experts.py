"""Which of two experts a file is for, by its header or its name."""

from wan_tpu.adapters.choice import EXPERTS
from wan_tpu.adapters.styles import AdapterFile
from wan_tpu.checkpoints.loose_files import expert_by_name

EXPERT_HEADER = "wan_tpu.component"
"""Of a file's header, where we wrote it: the transformer that it was trained on."""


def expert_of_file(file: AdapterFile) -> tuple[str | None, str | None]:
    """Of two experts the one that a file is for, whatever its keys name, and what says so.

    Returns:
        The transformer, and `header` or `name`; None for a file that does not say.
    """
    expert = file.header.get(EXPERT_HEADER)
    if expert in EXPERTS.values():
        return expert, "header"
    expert = expert_by_name(file.path)
    return expert, None if expert is None else "name"
