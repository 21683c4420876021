"""The exception tree. Every error a user can cause or must handle is a `WanTpuError`.

The command line maps `InputError` to exit code 2, every other `WanTpuError` to 1 and
`Cancelled` by Ctrl-C to 130; a message is one line that says what came, what was expected and,
where there is one, a value that works.
"""


class WanTpuError(Exception):
    """Base of all errors that wan-tpu raises on purpose."""


class InputError(WanTpuError, ValueError):
    """The user's request cannot be carried out as it was written."""


class GeometryError(InputError):
    """A size or a number of frames that the model cannot make."""


class PromptError(InputError):
    """A prompt that cannot be encoded."""


class MediaError(InputError):
    """A picture or clip that is not the one that the request names, or that nothing takes."""


class LayoutError(InputError):
    """A layout that does not fit the devices or the model."""


class UnknownNameError(InputError):
    """A model, scheduler, attention or other name that does not exist; names those that do."""

    def __init__(self, kind: str, name: str, known: list[str] | tuple[str, ...]):
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(known)}")


class AdapterError(InputError):
    """An adapter that a request names is not in the folder, or cannot be used."""


class CheckpointError(WanTpuError):
    """A model's files are missing, damaged or not those of the model."""


class MissingPackageError(WanTpuError):
    """An optional package is needed and not installed; says how to get it."""


class OutputError(WanTpuError):
    """The result cannot be written."""


class OutOfMemoryError(WanTpuError):
    """A device or the host has not enough memory for what was asked."""


class BadNumbersError(WanTpuError):
    """The model computed NaN or infinite numbers, of which no video can be made.

    Args:
        where: the stage, and how far it was.
    """

    def __init__(self, where: str):
        super().__init__(
            f"the model gave NaN or infinite numbers in {where}: its weights may be damaged, or "
            "too large for the dtype; float32 is the widest"
        )


class MismatchError(WanTpuError):
    """The processes of a slice differ in what must be the same; names what, and whose."""


class ProcessLostError(WanTpuError):
    """A process of a slice did not come, ended, hangs or fell out of step; names it."""


class Cancelled(WanTpuError):
    """The generation was asked to stop and did."""
