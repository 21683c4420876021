"""Pixels as they are stored and as they are seen: the eight ways to turn and mirror a picture."""

import numpy as np


def swaps_sides(orientation: int) -> bool:
    """Whether width and height are the other way round when seen."""
    return orientation >= 5


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels as they are seen.

    Args:
        pixels: `[height, width, 3]`.
        orientation: Exif's number, 1 to 8; 1 is as stored.

    Returns:
        `[height, width, 3]`, a view.
    """
    if swaps_sides(orientation):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def orientation_of(matrix: np.ndarray) -> int:
    """Exif's number of a clip's display matrix (ISO/IEC 14496-12).

    Args:
        matrix: `[3, 3]`: a stored place times it is the one where it is seen. Angles between are
            taken as the nearest quarter turn.

    Returns:
        1 to 8; 1 for a matrix that makes no sense.
    """
    (a, b), (c, d) = matrix[:2, :2].tolist()
    if abs(a * d - b * c) == 0:
        return 1
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    along_columns, along_rows = (c, b) if transposed else (a, d)
    mirrored, upside_down = along_columns < 0, along_rows < 0
    if transposed:
        return {(0, 0): 5, (1, 0): 6, (1, 1): 7, (0, 1): 8}[mirrored, upside_down]
    return {(0, 0): 1, (1, 0): 2, (1, 1): 3, (0, 1): 4}[mirrored, upside_down]
