"""Pictures from bytes: every way in which a file can say its colours, its turn, or nonsense."""

import concurrent.futures
import io
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageCms

from tests.image.pictures import (
    bare_png,
    chunk,
    corner_names,
    corners,
    encode,
    exif,
    insert_jpeg,
    insert_png,
    png,
)
from wan_tpu.errors import MediaError
from wan_tpu.image import picture, picture_file
from wan_tpu.image.picture import picture_size, read_picture

KINDS = ("PNG", "JPEG", "WebP")


def noise(height=40, width=56, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def refusal(data: bytes) -> str:
    with pytest.raises(MediaError) as caught:
        read_picture(data)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_the_three_kinds(kind):
    """Red when red and blue are swapped, or rows and columns."""
    lossless = {"JPEG": {"quality": 95}, "WebP": {"lossless": True}}
    data = encode(corners(), kind, **lossless.get(kind, {}))
    found = read_picture(data)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert picture_size(data) == (48, 32)
    assert found.shape == (32, 48, 3)
    assert corner_names(found) == "rgwb"
    if kind != "JPEG":
        np.testing.assert_array_equal(found, corners())


def test_a_lossy_webp_and_a_progressive_jpeg():
    assert corner_names(read_picture(encode(corners(), "WebP", quality=90))) == "rgwb"
    assert corner_names(read_picture(encode(corners(), "JPEG", progressive=True))) == "rgwb"


SEEN = {1: "rgwb", 2: "grbw", 3: "wbrg", 4: "bwgr", 5: "rbwg", 6: "brgw", 7: "wgrb", 8: "gwbr"}
"""Corners of a picture that is stored as `rgwb`, by Exif's orientation."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", SEEN)
def test_a_picture_is_turned_as_its_exif_says(kind, orientation):
    """As PIL turns it, too; the size is the one that is seen."""
    tags = Image.Exif()
    tags[274] = orientation
    data = encode(corners(), kind, exif=tags.tobytes())
    found = read_picture(data)
    assert corner_names(found) == SEEN[orientation]
    assert picture_size(data) == ((32, 48) if orientation >= 5 else (48, 32))
    assert found.shape[:2] == picture_size(data)[::-1]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [3, 4])
def test_both_byte_orders_of_exif(order, kind):
    data = encode(corners(), "JPEG", exif=b"Exif\0\0" + exif(6, order, kind))
    assert corner_names(read_picture(data)) == "brgw"


@pytest.mark.parametrize(
    "tags", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", exif(6)[:-20], exif(0), exif(9), b"x" * 40]
)
def test_exif_that_makes_no_sense_turns_nothing(tags):
    """PIL would warn about some of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in (
            insert_jpeg(encode(corners(), "JPEG"), 0xE1, b"Exif\0\0" + tags),
            insert_png(encode(corners()), (b"eXIf", tags)),
        ):
            assert corner_names(read_picture(data)) == "rgwb"


def test_transparency_shows_white_and_not_what_is_hidden():
    """Half of a red over white; where nothing is opaque, white, whatever colour is stored there."""
    pixels = np.full((8, 8, 4), (200, 10, 20, 255), np.uint8)
    pixels[:, 2:4, 3] = 0
    pixels[:, 4:6, 3] = 128
    for kind, options in (("PNG", {}), ("WebP", {"lossless": True, "exact": True})):
        found = read_picture(encode(pixels, kind, **options))
        assert found[0, 0].tolist() == [200, 10, 20]
        assert found[0, 2].tolist() == [255, 255, 255]
        expected = np.array([200, 10, 20]) * 128 / 255 + 127
        assert np.abs(found[0, 4] - expected).max() <= 1


def test_grey_with_alpha():
    pixels = np.full((4, 4, 2), (30, 255), np.uint8)
    pixels[:, 2:, 1] = 0
    found = read_picture(encode(Image.fromarray(pixels, "LA")))
    assert found[0].tolist() == [[30] * 3] * 2 + [[255] * 3] * 2


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_every_depth_with_one_clear_level(depth):
    """16 bits keep the upper eight and are not cut off at 255; fewer bits reach from 0 to 255."""
    levels = np.array([0, 1, 2**depth - 1, 2 ** (depth - 1)], np.uint32)
    bits = "".join(f"{level:0{depth}b}" for level in levels)
    packed = int(bits.ljust(-len(bits) % 8 + len(bits), "0"), 2)
    row = packed.to_bytes(max(1, -(-len(bits) // 8)), "big")
    expected = levels >> 8 if depth == 16 else levels * 255 // (2**depth - 1)
    found = read_picture(png([row], 4, depth, 0))
    assert found.shape == (1, 4, 3)
    assert found[0].tolist() == [[level] * 3 for level in expected]
    clear = read_picture(png([row], 4, depth, 0, (b"tRNS", struct.pack(">H", 1))))
    shown = [255 if level == 1 else value for level, value in zip(levels, expected, strict=True)]
    assert clear[0].tolist() == [[value] * 3 for value in shown]


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_colour_keep_the_upper_eight(colour_type, channels):
    levels = np.array([0x1234, 0x80FF, 0xFF00, 0xFFFF][:channels])
    row = levels.astype(">u2").tobytes()
    found = read_picture(png([row], 1, 16, colour_type))
    if colour_type == 4:
        expected = (0x12 * 0x80 + 255 * 0x7F) / 255
        assert np.abs(found[0, 0] - expected).max() <= 1
    else:
        assert found[0, 0].tolist() == [0x12, 0x80, 0xFF]


@pytest.mark.parametrize("depth", [8, 16])
def test_one_clear_colour_of_rgb(depth):
    colours = np.array([[10, 20, 30], [10, 20, 31]]) << (depth - 8)
    row = colours.astype(f">u{depth // 8}").tobytes()
    clear = (b"tRNS", colours[0].astype(">u2").tobytes())
    assert read_picture(png([row], 2, depth, 2, clear))[0].tolist() == [[255] * 3, [10, 20, 31]]
    wrong_length = (b"tRNS", b"\0\1")
    assert read_picture(png([row], 2, depth, 2, wrong_length))[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_of_every_depth_with_its_transparency(depth):
    """Index 0 is clear, index 1 opaque because its alpha is left out."""
    palette = (b"PLTE", bytes([9, 9, 9, 250, 120, 0]))
    row = {1: b"\x40", 2: b"\x10", 4: b"\x01", 8: b"\x00\x01"}[depth]
    opaque = read_picture(png([row], 2, depth, 3, palette))
    assert opaque[0].tolist() == [[9, 9, 9], [250, 120, 0]]
    clear = read_picture(png([row], 2, depth, 3, palette, (b"tRNS", b"\0")))
    assert clear[0].tolist() == [[255, 255, 255], [250, 120, 0]]


def test_an_index_past_the_palette_is_black():
    palette = (b"PLTE", bytes([9, 9, 9]))
    assert read_picture(png([b"\x00\x05"], 2, 8, 3, palette))[0].tolist() == [[9] * 3, [0] * 3]


def test_an_interlaced_png_and_pictures_of_one_channel():
    grey = noise(channels=1)[..., 0]
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("1")):
        expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(read_picture(encode(image)), expected)
    jpeg = read_picture(encode(Image.fromarray(grey), "JPEG", quality=95))
    assert (jpeg[..., 0] == jpeg[..., 1]).all()
    assert (jpeg[..., 0] == jpeg[..., 2]).all()


def test_cmyk_jpeg():
    """As Adobe's programs write it: inverted."""
    data = encode(Image.fromarray(corners()).convert("CMYK"), "JPEG", quality=95)
    assert data[data.index(b"Adobe") + 11] == 0
    assert corner_names(read_picture(data)) == "rgwb"


def test_ycck_jpeg():
    """Luminance, chroma and black: Adobe's marker says so. PIL cannot write it, so its samples are
    stored as if they were inks."""
    cyan, magenta, yellow, black = Image.fromarray(corners()).convert("CMYK").split()
    samples = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr").split()
    stored = Image.merge("CMYK", (*map(ImageChops.invert, samples), black))
    data = encode(stored, "JPEG", quality=95)
    transform = data.index(b"Adobe") + 11
    assert data[transform] == 0
    data = data[:transform] + b"\2" + data[transform + 1 :]
    assert corner_names(read_picture(data)) == "rgwb"


def profile_with_swapped_primaries() -> bytes:
    """sRGB with its red and blue primaries exchanged: whoever reads it must exchange them back."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {}
    for index in range(struct.unpack_from(">I", data, 128)[0]):
        name, place, _ = struct.unpack_from(">4sII", data, 132 + 12 * index)
        places[name] = 132 + 12 * index + 4, place
    (red_at, red), (blue_at, blue) = places[b"rXYZ"], places[b"bXYZ"]
    struct.pack_into(">I", data, red_at, blue)
    struct.pack_into(">I", data, blue_at, red)
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_colours_are_those_of_the_profile(kind):
    """Red when a profile is passed over; sRGB's own changes nothing."""
    options = {"WebP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    plain = read_picture(encode(corners(), kind, **options))
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = read_picture(encode(corners(), kind, icc_profile=own, **options))
    assert np.abs(same.astype(int) - plain).max() <= 1
    swapped = profile_with_swapped_primaries()
    found = read_picture(encode(corners(), kind, icc_profile=swapped, **options))
    assert corner_names(found) == "bgwr"


def test_a_large_profile_in_many_segments():
    profile = profile_with_swapped_primaries() + bytes(200_000)
    profile = struct.pack(">I", len(profile)) + profile[4:]
    data = encode(corners(), "JPEG", quality=95, icc_profile=profile)
    assert data.count(b"ICC_PROFILE\0") == 4
    assert corner_names(read_picture(data)) == "bgwr"


def test_a_profile_that_cannot_be_used_is_passed_over():
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey = encode(Image.fromarray(corners()[..., 0]), icc_profile=own)  # of another colour space
    np.testing.assert_array_equal(read_picture(grey)[..., 0], corners()[..., 0])
    for profile in (b"nonsense", own[:60], b""):
        packed = b"x\0\0" + zlib.compress(profile)
        data = insert_png(encode(corners()), (b"iCCP", packed))
        np.testing.assert_array_equal(read_picture(data), corners())
    data = insert_png(encode(corners()), (b"iCCP", b"x\0\0not packed"))
    np.testing.assert_array_equal(read_picture(data), corners())


def test_a_packed_profile_is_not_unpacked_without_end(monkeypatch):
    monkeypatch.setattr(picture_file, "MAX_PROFILE_BYTES", 1000)
    data = encode(corners(), icc_profile=profile_with_swapped_primaries() + bytes(2000))
    np.testing.assert_array_equal(read_picture(data), corners())


def test_what_a_file_says_beside_its_pixels_is_not_read():
    """Texts that unpack to gigabytes, a second JPEG behind the first, bytes after the end."""
    text = (b"zTXt", b"x\0\0" + zlib.compress(bytes(1 << 20)))
    assert corner_names(read_picture(insert_png(encode(corners()), *[text] * 100))) == "rgwb"
    jpeg = encode(corners(), "JPEG")
    assert corner_names(read_picture(jpeg + b"\0" * 9 + jpeg)) == "rgwb"
    mpo = io.BytesIO()
    Image.fromarray(corners()).save(
        mpo, "MPO", save_all=True, append_images=[Image.fromarray(corners()[::-1])]
    )
    assert corner_names(read_picture(mpo.getvalue())) == "rgwb"
    assert corner_names(read_picture(jpeg[:20] + b"\0\0\xff\xff" + jpeg[20:])) == "rgwb"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the picture is neither PNG, JPEG nor WebP: it is empty, 0 bytes"),
        (b"A red fox\n", "neither PNG, JPEG nor WebP: its file begins with b'A red fox\\n'"),
        (b"GIF89a" + bytes(40), "neither PNG, JPEG nor WebP"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "neither PNG, JPEG nor WebP"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "neither PNG, JPEG nor WebP: it is video/mp4"),
        (b"\x89PNG\r\n\x1a\n", "the PNG picture is damaged: its file ends too early"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b""), "it does not begin with its header"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"abc"), "its header has a wrong length"),
        (b"\xff\xd8\xff", "the JPEG picture is damaged: its file ends too early"),
        (b"\xff\xd8\xff\xd9", "the JPEG picture is damaged: it has no pixels"),
        (b"RIFF\x04\0\0\0WEBP", "the WebP picture is damaged: it does not begin"),
        (b"RIFF\xff\0\0\0WEBP", "the WebP picture is damaged: its file ends too early"),
        (png([b""], 0, 8, 0), "the picture has 0x1 pixels; at least 1x1 is needed"),
        (png([b"a"], 1, 3, 0), "there is no colour type 0 with 3 bits"),
        (png([b"a"], 1, 8, 3), "its palette has 0 bytes"),
        (png([b"a"], 2, 8, 0), "the PNG picture is damaged: "),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(data, message):
    assert message in refusal(data)


@pytest.mark.parametrize("kind", KINDS)
def test_every_beginning_of_a_file_is_refused(kind):
    """Red when a truncated file gives a picture that is grey below."""
    data = encode(noise(), kind, **({"lossless": True} if kind == "WebP" else {}))
    whole = read_picture(data)
    end = len(data) - (2 if kind == "JPEG" else 0)  # a JPEG may lack its end marker
    for length in [*range(0, end, max(1, end // 60)), end - 9, end - 20]:
        message = refusal(data[:length])
        assert message
    np.testing.assert_array_equal(read_picture(data), whole)


def test_a_changed_byte_of_png_pixels_is_seen():
    data = bytearray(encode(noise()))
    data[-40] ^= 1
    assert "a part IDAT does not match its checksum" in refusal(bytes(data))


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (2000, 3, "2000x3 pixels; one side may be at most 8 times the other"),
        (3, 2000, "3x2000 pixels; one side may be at most 8 times the other"),
        (8193, 8192, "8193x8192 pixels; at most 8192x8192 = 67108864 are taken"),
        (2**31 - 1, 2**31 - 1, "pixels; at most"),
    ],
)
def test_sizes_are_refused_before_anything_is_decoded(width, height, message, monkeypatch):
    """By the header: the files hold hardly any pixels, and no decoder is there."""
    monkeypatch.setattr("wan_tpu.image.picture._DECODERS", {})
    assert message in refusal(bare_png(width, height))
    with pytest.raises(MediaError, match=re.escape(message)):
        picture_size(bare_png(width, height))


def test_sizes_of_jpeg_and_webp_are_refused_by_their_headers(monkeypatch):
    monkeypatch.setattr("wan_tpu.image.picture._DECODERS", {})
    jpeg = encode(corners(), "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    large = jpeg[: frame + 5] + struct.pack(">HH", 65535, 65535) + jpeg[frame + 9 :]
    assert "65535x65535 pixels" in refusal(large)
    for options in ({"lossless": True}, {"quality": 80}, {"quality": 80, "exif": exif(1)}):
        webp = encode(noise(3, 40), "WebP", **options)
        assert "40x3 pixels; one side" in refusal(webp)


@pytest.mark.parametrize("size", [(1, 1), (8, 1), (1, 8), (256, 32)])
def test_the_narrowest_that_are_taken(size):
    width, height = size
    assert read_picture(encode(noise(height, width))).shape == (height, width, 3)


@pytest.mark.parametrize("kind", ["PNG", "WebP"])
def test_animations_are_refused_and_one_frame_is_not(kind):
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert f"the {kind} picture is animated, with 3 frames" in refusal(data)
    with pytest.raises(MediaError, match="animated"):
        picture_size(data)
    one = encode(corners(), kind, save_all=True, **({"lossless": True} if kind == "WebP" else {}))
    np.testing.assert_array_equal(read_picture(one), corners())


def test_a_jpeg_of_endless_scans_is_refused():
    data = encode(corners(), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    many = data[:-2] + data[scan:-2] * 300 + data[-2:]
    assert "scans, at most 200 are taken" in refusal(many)


def test_a_file_of_endless_parts_is_refused(monkeypatch):
    monkeypatch.setattr(picture_file, "MAX_PARTS", 50)
    assert "more than 50 parts" in refusal(insert_png(encode(corners()), *[(b"teXt", b"")] * 50))
    jpeg = encode(corners(), "JPEG")
    assert "more than 50 parts" in refusal(jpeg[:2] + b"\xff\xfe\0\2" * 50 + jpeg[2:])


def test_twelve_bit_jpeg_is_refused_with_a_way_out():
    jpeg = encode(corners(), "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    assert "3 channels of 12 bits" in refusal(jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :])


def test_a_decoder_that_sees_another_size_than_the_header_is_not_used(monkeypatch):
    """What was checked is what is decoded, whatever a file plays on the two readers."""

    def other(file):
        return Image.open(io.BytesIO(encode(corners(9, 9))))

    monkeypatch.setitem(picture._DECODERS, "PNG", other)
    assert "its parts differ in their size" in refusal(encode(corners()))


def test_nothing_global_is_changed_and_threads_do_not_meet():
    """Warnings of other threads are theirs, and PIL's own bounds stay as the program set them."""
    settings = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    pictures = [encode(noise(seed=seed)) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read_picture, pictures * 4))
    for index, pixels in enumerate(found):
        np.testing.assert_array_equal(pixels, noise(seed=index % 8))
    assert settings == (Image.MAX_IMAGE_PIXELS, list(warnings.filters))


BEGINS = (
    b"",
    b"\x89PNG\r\n\x1a\n",
    bare_png(5, 5)[:33],
    b"\xff\xd8\xff",
    encode(noise(8, 8), "JPEG")[:200],
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"RIFF\x40\0\0\0WEBPVP8L",
    b"RIFF\x40\0\0\0WEBPVP8X",
)


@given(st.sampled_from(BEGINS), st.binary(max_size=200))
def test_random_bytes_give_one_error(begin, rest):
    with pytest.raises(MediaError):
        read_picture(begin + rest)


WHOLE = (
    *(encode(noise(8, 8), kind) for kind in KINDS),
    encode(noise(8, 8), "WebP", lossless=True),
    encode(noise(8, 8), "JPEG", progressive=True),
    encode(Image.fromarray(noise(8, 8)).quantize(9), transparency=3),
)


@given(st.sampled_from(WHOLE), st.data())
def test_damaged_files_give_a_picture_or_one_error(data, draw):
    """A changed byte, and a piece that is cut out or put in twice; nothing else is ever raised."""
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        changed[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    begin, end = sorted(draw.draw(st.integers(0, len(data))) for _ in range(2))
    for damaged in (changed, changed[:begin] + changed[end:], changed[:end] + changed[begin:]):
        try:
            pixels = read_picture(bytes(damaged))
        except MediaError:
            continue
        else:
            assert pixels.dtype == np.uint8
            assert pixels.shape[:2] == picture_size(bytes(damaged))[::-1]
