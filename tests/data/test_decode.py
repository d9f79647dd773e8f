"""Every kind of image file, whole and damaged, against its written rule."""

import io
import json
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from harmonic_jax.data.decode import REFUSALS, DecodedImage, ImageError, decode_image
from tests.data.fake_source import encode, noise

PICTURE = noise(30, 50)
JPEG = encode(noise(200, 300), "JPEG", quality=95)


def decode(data: bytes, **options: Any) -> DecodedImage:
    return decode_image(data, **{"max_pixels": 1_000_000, **options})


def refusal(data: bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    assert caught.value.reason in REFUSALS
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(caught.value.reason)
    return caught.value.reason


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def test_real_jpegs_agree_with_pillow(coco_tiny: Path) -> None:
    annotations = json.loads((coco_tiny / "annotations/instances_val2017.json").read_text())
    for entry in annotations["images"][:8]:
        path = coco_tiny / "val2017" / entry["file_name"]
        size = (entry["height"], entry["width"])
        found = decode(path.read_bytes(), annotated_size=size)
        with Image.open(path) as reference:
            expected = np.asarray(reference.convert("RGB"))
        assert found.image.dtype == np.uint8
        assert found.image.flags.c_contiguous
        assert difference(found.image, expected) < 0.5, path
        assert np.abs(found.image.astype(int) - expected).max() <= 8


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_refused(progressive: bool) -> None:
    data = encode(noise(200, 300), "JPEG", progressive=progressive, quality=95)
    for kept in (0.05, 0.3, 0.6, 0.95, 0.999):
        assert refusal(data[: int(len(data) * kept)]) == "truncated"
    assert refusal(data[:-1]) == "truncated"
    for start in (2, 3, 4, 20, 100, data.index(b"\xff\xda")):
        assert refusal(data[:start]) in ("truncated", "corrupt", "not_an_image")


def test_damaged_pixels_are_refused_and_stray_bytes_noted() -> None:
    assert refusal(JPEG[: len(JPEG) * 2 // 3] + JPEG[-2:]) == "corrupt"  # ends with its marker
    png = bytearray(encode(noise(60, 60)))
    middle = png.index(b"IDAT") + 40
    png[middle : middle + 30] = bytes(30)
    assert refusal(bytes(png)) == "corrupt"
    png = encode(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    for kept in (0.1, 0.5, 0.99):
        assert refusal(png[: int(png.index(b"IEND") * kept)]) == "truncated"
    start_of_scan = JPEG.index(b"\xff\xda")
    found = decode(JPEG[:start_of_scan] + b"stray" + JPEG[start_of_scan:])
    assert found.notes == ("jpeg_warning",)
    assert difference(found.image, decode(JPEG).image) == 0


def test_the_cap_is_checked_before_pixels_are_decoded() -> None:
    data = encode(noise(100, 100))
    header_only = data[: data.index(b"IDAT") + 8]
    assert refusal(header_only, max_pixels=9_999) == "too_large"
    assert decode(data, max_pixels=10_000).image.shape == (100, 100, 3)
    bomb = bytearray(encode(noise(8, 8)))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # IHDR claims 3.6 gigapixels
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    assert refusal(bytes(bomb)) == "too_large"


def test_grayscale_is_repeated() -> None:
    gray = PICTURE[..., 0]
    found = decode(encode(gray, "JPEG"))
    assert found.notes == ("grayscale",)
    assert difference(found.image, np.stack([gray] * 3, axis=-1)) <= 2


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 30 * 40).reshape(30, 40).astype(np.uint16)
    found = decode(cv2.imencode(".png", values)[1].tobytes())
    assert set(found.notes) == {"grayscale", "16bit"}
    assert np.abs(found.image - (values / 257.0)[..., None]).max() <= 1
    colour = np.stack([values, values[::-1], values[:, ::-1]], axis=-1)  # BGR to OpenCV
    found = decode(cv2.imencode(".png", colour)[1].tobytes())
    assert found.notes == ("16bit",)
    assert np.abs(found.image - colour[..., ::-1] / 257.0).max() <= 1


def test_cmyk_jpeg_is_converted_with_adobes_inversion() -> None:
    buffer = io.BytesIO()
    # Pillow writes CMYK inverted behind an Adobe marker, as Photoshop does.
    Image.fromarray(PICTURE).convert("CMYK").save(buffer, "JPEG", quality=98)
    assert b"Adobe" in buffer.getvalue()
    found = decode(buffer.getvalue())
    assert found.notes == ("cmyk",)
    assert difference(found.image, PICTURE) < 3


def test_palette_and_alpha() -> None:
    alpha = np.full((30, 50, 1), 7, np.uint8)
    found = decode(encode(np.concatenate([PICTURE, alpha], axis=-1)))
    assert found.notes == ("alpha",)
    np.testing.assert_array_equal(found.image, PICTURE)
    palette = Image.fromarray(PICTURE).quantize(8)
    for options in ({}, {"transparency": bytes([0, 9, 255, 255])}, {"transparency": 3}):
        buffer = io.BytesIO()
        palette.save(buffer, "PNG", **options)
        found = decode(buffer.getvalue())
        assert found.notes == (("palette", "alpha") if options else ("palette",))
        np.testing.assert_array_equal(found.image, np.asarray(palette.convert("RGB")))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.fromarray(noise(16, 16, seed=s)).quantize(16) for s in (1, 2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    found = decode(buffer.getvalue())
    assert "many_frames" in found.notes
    assert difference(found.image, np.asarray(frames[0].convert("RGB"))) < 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_is_turned_only_where_its_annotation_is(format: str) -> None:
    plain = decode(encode(PICTURE, format)).image
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(PICTURE, format, exif=exif)
        stored = decode(data, annotated_size=(30, 50))
        assert stored.notes == (() if orientation == 1 else ("exif_ignored",))
        np.testing.assert_array_equal(stored.image, plain)
        viewed = decode(data, upright=True)
        with Image.open(io.BytesIO(data)) as image:  # Pillow turns a TIFF by itself
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert difference(viewed.image, expected) < 1
        assert viewed.image.flags.c_contiguous
        assert viewed.notes == (() if orientation == 1 else ("exif_rotated",))
        if orientation < 5:
            assert refusal(data, annotated_size=(50, 30)) == "size_mismatch"
        else:
            turned = decode(data, annotated_size=(50, 30))
            np.testing.assert_array_equal(turned.image, viewed.image)
            assert turned.notes == ("exif_rotated",)
