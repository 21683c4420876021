"""What can be wrong with a file that is learnt from, and what is only worth knowing of it."""

import dataclasses

FAULTS = {
    "missing": "a file that is not there",
    "unreadable": "a file that cannot be opened or decoded",
    "empty": "a file of zero bytes",
    "truncated": "a file that ends too early",
    "damaged": "a file of which some frames cannot be decoded",
    "no-video": "a file without a video stream",
    "not-media": "a file that is neither a clip nor a picture",
    "format": "a format that is not read",
    "bounds": "a file beyond what is taken: pixels, ratio of the sides, seconds",
    "too-short": "a clip with too few frames at the wanted rate",
    "too-small": "a clip or picture that would have to be made larger",
    "no-caption": "a clip or picture without a caption",
    "empty-caption": "a caption without words",
    "encoding": "text that is not UTF-8",
    "line": "a line of a manifest that cannot be used",
    "duplicate": "a file whose content is that of another one",
    "same-line": "a line of a manifest that stands there twice",
    "constant": "a clip or picture of one colour",
    "crash": "a file that ends the process that decodes it",
}
"""By name: a file with one of these is not learnt from until it is mended."""

NOTES = {
    "suffix": "content of another format than the name says",
    "varying-rate": "frames that are not evenly spread",
    "other-rate": "a frame rate that is not the model's",
    "turned": "frames that are stored turned or mirrored",
    "pixel-shape": "pixels that are not square",
    "depth": "more than eight bits a sample, or HDR",
    "interlaced": "frames whose lines are of two moments",
    "no-rate": "stored frames of which nobody says the rate",
    "resized": "a size that is not the wanted one",
    "still": "a clip whose frames are all the same",
    "repaired": "a few frames that the decoder could not give",
    "same-start": "a clip that begins with the picture of another one",
    "same-clip": "a clip that has several captions",
    "absolute-path": "a path that another machine may not have",
    "outside": "a path that leads out of the manifest's folder",
    "passed-over": "a file that is not looked at",
    "channels-first": "stored frames whose channels come before their height",
}
"""By name: nothing need be done, and what will be done is said."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing about one file or one line of a manifest.

    Attributes:
        name: of the file as the listing has it; of the manifest with the line.
        kind: of `FAULTS` or `NOTES`.
        words: what it is, and what to do or what will be done.
    """

    name: str
    kind: str
    words: str

    def __post_init__(self) -> None:
        assert self.kind in FAULTS or self.kind in NOTES, self.kind

    @property
    def is_fault(self) -> bool:
        """Whether the file is not learnt from until it is mended."""
        return self.kind in FAULTS


def kind_of_error(message: str) -> str:
    """Which of `FAULTS` a `MediaError` of `wan_tpu.image` is."""
    for words, kind in _ERRORS:
        if words in message:
            return kind
    return "unreadable"


_ERRORS = (
    ("it is empty, 0 bytes", "empty"),
    ("ends too early", "truncated"),
    ("has no video", "no-video"),
    ("neither", "not-media"),
    ("is animated", "format"),
    ("at most", "bounds"),
    ("need more than", "bounds"),
    ("too many frames", "bounds"),
    ("has more than", "bounds"),
)
"""Words of an error, in the order in which they are looked for."""
