"""Kinds of image files, those that viewers open and others: the pixels, or the true reason."""

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from harmonic_jax.data.decode import SUFFIXES, ImageError, decode_image
from harmonic_jax.data.folders import header_size
from harmonic_jax.data.image_file import read_image_file
from tests.data.fake_source import encode

LEFT, BOX = (200, 30, 60), (20, 220, 90)
PICTURE = np.full((48, 64, 3), LEFT, np.uint8)
PICTURE[12:36, 20:60] = BOX
GRAY = PICTURE[..., 0]
PNG = encode(PICTURE)
PIXELS, END = PNG.index(b"IDAT") - 4, PNG.index(b"IEND") - 4


def part(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(
    width: int, height: int, depth: int, kind: int, rows: np.ndarray, more: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    return (
        PNG[:8] + part(b"IHDR", header) + more + part(b"IDAT", zlib.compress(lines))
        + part(b"IEND", b"")
    )  # fmt: skip


def tiff(pixels: np.ndarray, *, photometric: int, bits: int, order: str = "<") -> bytes:
    """One strip of gray pixels as they are, 64 x 48."""
    tags = {
        256: 64, 257: 48, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 9 * 12 + 4, 277: 1,
        278: 48, 279: pixels.nbytes,
    }  # fmt: skip
    entries = b"".join(
        struct.pack(order + "HHI", tag, 4, 1) + struct.pack(order + "I", value)
        for tag, value in tags.items()
    )
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HIH", 42, 8, len(tags))
    return start + entries + bytes(4) + pixels.tobytes()


def image_of(data: bytes) -> np.ndarray:
    return decode_image(data, max_pixels=10**6).image


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        image_of(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


TEXT = part(b"zTXt", b"c\0\0" + zlib.compress(bytes(2_000_000)))
PROFILE = part(b"iCCP", b"icc\0\0" + zlib.compress(os.urandom(2**21)))


@pytest.mark.parametrize(
    "data",
    {
        "text": PNG[:PIXELS] + TEXT + PNG[PIXELS:],
        "XMP": PNG[:PIXELS] + part(b"iTXt", b"XMP\0\0\0\0\0" + bytes(2**21)) + PNG[PIXELS:],
        "profile": PNG[:PIXELS] + PROFILE + PNG[PIXELS:],
        "checksum of a text": PNG[:PIXELS] + part(b"tEXt", b"c\0d")[:-4] + b"none" + PNG[PIXELS:],
        "no end": PNG[:END],
    }.items(),
    ids=lambda item: item[0],
)
def test_what_surrounds_the_pixels_of_a_png_costs_nothing(data: tuple[str, bytes]) -> None:
    np.testing.assert_array_equal(image_of(data[1]), PICTURE)
    assert header_size(data[1]) == (48, 64)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (PNG[: END - 4] + b"none" + PNG[END:], "corrupt: the checksum of the pixels"),
        (PNG[:PIXELS] + TEXT[:1000], "truncated: "),
        (PNG[:PIXELS] + b"\xff\xff\xff\xfftEXt" + PNG[PIXELS:], "truncated: "),
        (png(0, 0, 8, 2, PICTURE), "corrupt: "),
        (png(2**31 - 1, 2**31 - 1, 8, 2, PICTURE), "too_large: 2147483647 x 2147483647"),
        (b"\0\0\0\x1cftypheic" + bytes(99), "not_an_image: the file is HEIC"),
        (b"\0\0\0\x1cftypavif" + bytes(99), "not_an_image: the file is AVIF"),
        (b"\xef\xbb\xbf<!DOCTYPE html><p>", "not_an_image: the file is a web page, XML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_an_image: the file is a Git LFS"),
        (b"", "empty: "),
        (bytes(4000), r"not_an_image: the file begins with b'\x00\x00"),
        (encode(np.ones((4, 4), np.float32), "TIFF"), "unsupported: no rule for"),
        (tiff(GRAY.astype("<i2"), photometric=9, bits=16), "unsupported: unknown pixel mode"),
        (encode(PICTURE, "WEBP")[:-20], "truncated: the file is shorter than its header"),
        (encode(PICTURE, "BMP")[:-40], "truncated: "),
    ],
)  # fmt: skip
def test_the_reason_is_the_true_one(data: bytes, words: str) -> None:
    assert refusal(data).startswith(words)


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"]
)
def test_a_cut_tiff(compression: str) -> None:
    data = encode(PICTURE, "TIFF", compression=compression)
    for kept in (0.1, 0.5, 0.99):
        assert refusal(data[: int(len(data) * kept)]).startswith("truncated")


def test_kinds_that_no_decoder_here_reads() -> None:
    data = encode(PICTURE, "JPEG")
    frame = data.index(b"\xff\xc0")
    twelve_bits = data[: frame + 4] + b"\x0c" + data[frame + 5 :]
    assert refusal(twelve_bits) == "unsupported: cannot handle 12-bit layers"
    two_channels = data[: frame + 9] + b"\x02" + data[frame + 10 :]
    assert refusal(two_channels) == "unsupported: cannot handle 2-layer images"
    lab = io.BytesIO()
    Image.new("LAB", (9, 9), (100, 100, 100)).save(lab, "TIFF")
    assert refusal(lab.getvalue()) == "unsupported: no rule for pixels of Pillow's mode LAB"


TWELVE = (GRAY.astype(np.uint32) * 4095 // 255).reshape(-1, 2)
DEEP = PICTURE.astype(">u2") * np.uint16(257)
GRAY_FILES = {
    "16 bits": tiff(GRAY.astype("<u2") * np.uint16(257), photometric=1, bits=16),
    "16 bits, big-endian": tiff(
        (GRAY.astype(np.uint16) * 257).astype(">u2"), photometric=1, bits=16, order=">"
    ),
    "16 bits, negative": tiff((255 - GRAY.astype("<u2")) * np.uint16(257), photometric=0, bits=16),
    "8 bits, negative": tiff(255 - GRAY, photometric=0, bits=8),
    "12 bits": tiff(
        np.stack(
            [TWELVE[:, 0] >> 4, (TWELVE[:, 0] & 15) << 4 | TWELVE[:, 1] >> 8, TWELVE[:, 1] & 255],
            axis=-1,
        ).astype(np.uint8),
        photometric=1,
        bits=12,
    ),
    "PGM of 10 bits": b"P5 64 48 1023\n" + (GRAY.astype(np.uint16) * 4).astype(">u2").tobytes(),
    "PNG of 16 bits and alpha": png(
        64, 48, 16, 4, np.stack([DEEP[..., 0], np.full((48, 64), 3, ">u2")], axis=-1).astype(">u2")
    ),
    "PNG with a transparent gray": png(64, 48, 8, 0, GRAY, part(b"tRNS", struct.pack(">H", 200))),
}  # fmt: skip


@pytest.mark.parametrize("data", GRAY_FILES.items(), ids=lambda item: item[0])
def test_gray_is_scaled_by_its_own_depth(data: tuple[str, bytes]) -> None:
    np.testing.assert_array_equal(image_of(data[1]), np.stack([GRAY] * 3, axis=-1))


COLOURS = {
    **{name: encode(PICTURE, name) for name in ("BMP", "GIF", "PPM", "TIFF")},
    "PNG of 4 channels": encode(np.dstack([PICTURE, GRAY])),
    "WEBP": encode(PICTURE, "WEBP", lossless=True),
    "PNG of 16 bits": png(64, 48, 16, 2, DEEP),
    "PPM of 16 bits": b"P6 64 48 65535\n" + DEEP.tobytes(),
    "PPM as text": b"P3 64 48 255\n" + " ".join(map(str, PICTURE.reshape(-1).tolist())).encode(),
    "PNG with a transparent colour": png(
        64, 48, 8, 2, PICTURE, part(b"tRNS", struct.pack(">HHH", *LEFT))
    ),
    "BigTIFF": encode(PICTURE, "TIFF", big_tiff=True),
}


@pytest.mark.parametrize("data", COLOURS.items(), ids=lambda item: item[0])
def test_colours_are_those_of_another_decoder(data: tuple[str, bytes]) -> None:
    decoded = decode_image(data[1], max_pixels=10**6)
    found = decoded.image
    np.testing.assert_array_equal(found, PICTURE)
    assert ("16bit" in decoded.notes) == data[0].endswith("16 bits")
    if "text" not in data[0]:
        other = cv2.imdecode(np.frombuffer(data[1], np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(found, other[..., ::-1])


def test_an_orientation_behind_the_pixels_of_a_png_counts() -> None:
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    data = PNG[:END] + part(b"eXIf", exif) + PNG[END:]
    upright = decode_image(data, max_pixels=10**6, upright=True)
    np.testing.assert_array_equal(upright.image, np.rot90(PICTURE, -1))


@pytest.mark.parametrize(
    "options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}, {"xmp": True}], ids=str
)
def test_a_tiff_is_used_as_it_is_stored(options: dict) -> None:
    """Pillow turns it without a word, and boxes of the stored pixels would lie elsewhere."""
    is_xmp = options.pop("xmp", False)  # which only some programs look at
    for orientation in range(1, 9):
        tags = Image.Exif()
        if is_xmp:
            tags[700] = f'<x:xmpmeta tiff:Orientation="{orientation}"/>'.encode()
        else:
            tags[0x0112] = orientation
        data = encode(PICTURE, "TIFF", exif=tags, **options)
        assert header_size(data) == (48, 64)
        found = decode_image(data, max_pixels=10**6, annotated_size=(48, 64)).image
        np.testing.assert_array_equal(found, PICTURE)


@pytest.mark.filterwarnings("ignore:::PIL")
def test_an_orientation_that_is_nonsense_is_none() -> None:
    files = [encode(PICTURE, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage")]
    for value in (0, 9, 600):
        tags = Image.Exif()
        tags[0x0112] = value
        files += [encode(PICTURE, format, exif=tags) for format in ("JPEG", "TIFF", "PNG")]
    for data in files:
        found = decode_image(data, max_pixels=10**6, upright=True)
        assert found.image.shape == PICTURE.shape
        assert found.notes == ()


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A pipe without a writer would be waited for, /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path, Path("/dev/zero"), tmp_path / "loop.jpg"):
        with pytest.raises(OSError, match=str(path)):
            read_image_file(path)
        assert header_size(path) is None
    for name in ("x" * 300, "\ud800.jpg", "nul\0.jpg"):  # names that no file can have
        with pytest.raises(OSError, match=r"too long|surrogates|null"):
            read_image_file(tmp_path / name)
    (tmp_path / "a.jfif").write_bytes(PNG)
    assert read_image_file(tmp_path / "a.jfif") == PNG
    assert header_size(tmp_path / "a.jfif") == (48, 64)
    assert {".jfif", ".jpg", ".tif"} <= set(SUFFIXES)


def test_a_header_far_into_the_file_is_found(tmp_path: Path) -> None:
    data = encode(PICTURE, "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 65535) + bytes(65533)
    (tmp_path / "a.jpg").write_bytes(data[:2] + comment * 3 + data[2:])
    assert header_size(tmp_path / "a.jpg") == (48, 64)


def test_the_orientation_of_a_long_png_is_found_behind_its_pixels(tmp_path: Path) -> None:
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    noise = np.random.default_rng(0).integers(0, 256, (300, 400), np.uint8)
    data = png(400, 300, 8, 0, noise)
    assert len(data) > 2**16
    end = data.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:end] + part(b"eXIf", exif) + data[end:])
    assert header_size(tmp_path / "a.png", upright=True) == (400, 300)
    assert header_size(tmp_path / "a.png") == (300, 400)


def test_a_header_of_a_size_that_no_image_has_is_none() -> None:
    assert header_size(png(3_000_000_000, 2, 8, 0, GRAY)) is None
    bmp = bytearray(encode(PICTURE, "BMP"))
    bmp[18:22] = struct.pack("<i", -60)
    assert header_size(bytes(bmp)) is None
