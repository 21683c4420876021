"""Whose fault it is: the field of a body for a sentence of the library about a request."""

from server.errors import ApiError
from server.http.bodies import Making
from wan_tpu.errors import InputError

NAMES = {"adapters": "lora"}
"""Fields of a request that the API calls otherwise."""


def refused(error: InputError, *, otherwise: str | None = None, why: str = "") -> ApiError:
    """The error of the API for one of the library's, whose sentence begins with the field's name.

    Args:
        error: of the library.
        otherwise: the field to blame where the sentence begins with none.
        why: what is to be added, as a further part of the sentence.
    """
    words = str(error)
    first, space, rest = words.partition(" ")
    field = NAMES.get(first, first)
    if field not in Making.model_fields:
        return ApiError(400, "invalid_value", words + why, param=otherwise)
    return ApiError(400, "invalid_value", f"{field}{space}{rest}{why}", param=field)
