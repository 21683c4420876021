"""The bytes of a job's pictures and clips on their way from process 0, frame by frame."""

from collections.abc import Iterator, Mapping

from wan_tpu.errors import MediaError
from wan_tpu.media import Media, check_size
from wan_tpu.multihost.connection import FRAME_BYTES


def frames_of(media: Media) -> Iterator[memoryview]:
    """All bytes of each picture or clip, one after the other, in frames of a connection."""
    for data in media.values():
        view = memoryview(data)
        for start in range(0, len(view), FRAME_BYTES):
            yield view[start : start + FRAME_BYTES]


class Incoming:
    """What a follower has received of a job's pictures and clips."""

    def __init__(self, announced: Mapping[str, int]):
        """Waits for the bytes.

        Args:
            announced: size in bytes by digest, in the order in which they come.

        Raises:
            ValueError: they are not sizes, or more than any request may carry.
        """
        sizes = list(announced.values())
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError(f"sizes of pictures that are none: {sizes[:3]}")
        try:
            check_size(sizes)
        except MediaError as error:
            raise ValueError(str(error)) from None
        self._announced = dict(announced)
        self._missing = sum(sizes)
        self._data = bytearray()

    @property
    def is_complete(self) -> bool:
        """Whether no byte is missing."""
        return not self._missing

    def add(self, frame: bytes) -> None:
        """Takes the next frame.

        Raises:
            ValueError: it has more bytes than were announced.
        """
        if len(frame) > self._missing:
            raise ValueError(f"a frame of {len(frame)} bytes where {self._missing} are missing")
        self._missing -= len(frame)
        self._data += frame

    def media(self) -> Media:
        """All of them, once they are complete.

        Raises:
            MediaError: some are not of the digest that was announced; names it.
        """
        assert self.is_complete
        contents, start = {}, 0
        for digest, size in self._announced.items():
            contents[digest] = bytes(memoryview(self._data)[start : start + size])
            start += size
        return Media(contents)
