"""What a disk without room looks like in an error, wherever it strikes."""

import errno

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
_WORDS = ("No space left on device", "Disk quota exceeded")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it was made of, is a disk without room.

    The numbers are Python's own, the words those of programs such as ffmpeg and of libraries that
    wrap the system's error in one of theirs.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NUMBERS:
            return True
        if any(words in str(error) for words in _WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False
