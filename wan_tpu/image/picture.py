"""A picture's bytes as RGB pixels: PNG, JPEG and WebP, as a browser would show them on white.

Sizes are checked by the file's header before anything is decoded. No JAX; nothing global is
changed, so that threads may read pictures side by side.
"""

import io
import logging
import struct

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from wan_tpu.errors import MediaError
from wan_tpu.image.bounds import MAX_PICTURE_PIXELS, check_pixels
from wan_tpu.image.orientation import turn
from wan_tpu.image.picture_file import PictureFile, damaged, read_picture_file

logger = logging.getLogger(__name__)

BACKGROUND = (255, 255, 255)
"""What shows through where a picture is transparent. Nothing in Wan's code says; white is what the
paper of a drawing and the page of most browsers are. Dropping the alpha would show colours that
nobody has seen."""

# The format's own class: PIL's search for the right one makes an animation of two pictures in a
# phone's JPEG, and warns about sizes that have been checked already.
_DECODERS = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}

_DECODER_ERRORS = (OSError, SyntaxError, EOFError, ValueError, struct.error)
"""What PIL raises of damaged files; `SyntaxError` is its word for a file of another format."""

_PROFILE_MODES = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}
"""The mode of pictures that a colour profile of a kind is about."""


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels as `read_picture` gives them; decodes nothing.

    Raises:
        MediaError: it is no picture, is animated, too large, or too narrow.
    """
    return _read_checked(data).size


def read_picture(data: bytes) -> np.ndarray:
    """A picture as it is meant to be seen.

    It is turned as its Exif says; samples of 16 bits keep the upper 8; what is transparent shows
    `BACKGROUND`; CMYK and colour profiles become sRGB. PNG's gamma and HDR marks, and a second
    picture behind a JPEG's first, as phones write it, are passed over.

    Args:
        data: the file.

    Returns:
        `[height, width, 3]`, uint8, RGB.

    Raises:
        MediaError: it is no picture, is damaged, animated, too large, or too narrow.
    """
    file = _read_checked(data)
    try:
        image = _DECODERS[file.kind](io.BytesIO(b"".join(file.parts)))
        if image.size != (file.width, file.height):
            raise damaged(file.kind, "its parts differ in their size")
        image.load()
    except _DECODER_ERRORS as error:
        if isinstance(error, MediaError):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        raise damaged(file.kind, why) from error
    colours, alpha = _separate(image, file)
    colours = _to_srgb(colours, file.profile)
    if alpha is not None:
        colours = over_background(colours, alpha)
    return np.ascontiguousarray(turn(np.asarray(colours), file.orientation))


def over_background(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """What is seen of colours in mode RGB where alpha, in mode L, is less than 255."""
    shown = Image.new("RGB", colours.size, BACKGROUND)
    shown.paste(colours, mask=alpha)
    return shown


def _read_checked(data: bytes) -> PictureFile:
    file = read_picture_file(data)
    width, height = file.size
    check_pixels(width, height, what="picture", max_pixels=MAX_PICTURE_PIXELS)
    return file


def _separate(image: Image.Image, file: PictureFile) -> tuple[Image.Image, Image.Image | None]:
    """Colours in mode L, RGB or CMYK, and alpha in mode L; None for opaque."""
    if image.mode in ("LA", "RGBA"):
        *colours, alpha = image.split()
        return (colours[0] if len(colours) == 1 else Image.merge("RGB", colours)), alpha
    if image.mode == "P":
        return _look_up(np.asarray(image), file)
    alpha = None
    if file.transparency is not None:
        alpha = _transparent_colour(np.asarray(image), file)
    if image.mode.startswith("I"):  # 16 bits of grey
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)), alpha
    return (image.convert("L") if image.mode == "1" else image), alpha


def _look_up(indices: np.ndarray, file: PictureFile) -> tuple[Image.Image, Image.Image | None]:
    """Colours, and alpha where there is some, of a picture of `[height, width]` palette indices."""
    # An index past the end of the palette is an error that decoders show as black.
    palette = np.frombuffer(file.palette.ljust(768, b"\0"), np.uint8).reshape(256, 3)
    colours = Image.fromarray(palette[indices])
    if file.transparency is None:
        return colours, None
    alphas = np.frombuffer(file.transparency[:256].ljust(256, b"\xff"), np.uint8)
    return colours, Image.fromarray(alphas[indices])


def _transparent_colour(pixels: np.ndarray, file: PictureFile) -> Image.Image | None:
    """Alpha of a picture, `[height, width]` or with 3 channels, of which one colour is clear."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    assert file.transparency is not None
    if len(file.transparency) != 2 * channels:
        return None  # the standard calls it an error, and browsers show the picture without
    colour = np.frombuffer(file.transparency, ">u2")
    if file.bit_depth == 16 and channels == 3:
        colour = colour >> 8  # of pixels, too, the decoder has kept the upper half
    elif 1 < file.bit_depth < 8:
        colour = colour * (255 // (2**file.bit_depth - 1))  # as the decoder spreads grey
    clear = (pixels.reshape(*pixels.shape[:2], channels) == colour).all(axis=2)
    return Image.fromarray(np.where(clear, 0, 255).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours of mode L, RGB or CMYK as sRGB; a profile that cannot be used is passed over."""
    if profile is not None:
        try:
            if _PROFILE_MODES.get(profile[16:20]) == image.mode:
                source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
                assert converted is not None  # it is where the picture is not changed in place
                return converted
            logger.info("a colour profile is not one for pictures of mode %s", image.mode)
        except (ImageCms.PyCMSError, OSError) as error:
            logger.info("a colour profile cannot be used: %s", error)
    return image.convert("RGB")
