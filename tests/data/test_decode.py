"""Every kind of image file, whole and damaged, against its written rule."""

import io
import json
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from harmonic_jax.data.decode import NOTES, REFUSALS, ImageError, decode_image
from tests.data.fake_source import encode, noise

CAP = 1_000_000


def decode(data: bytes, **options: object):
    return decode_image(data, **{"max_pixels": CAP, **options})


def refusal(data: bytes, **options: object) -> str:
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


def test_lossless_files_come_back_bit_for_bit() -> None:
    image = noise(20, 30)
    for format in ("PNG", "BMP", "PPM", "TIFF"):
        found = decode(encode(image, format))
        np.testing.assert_array_equal(found.image, image)
        assert found.notes == ()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.95, 0.999])
def test_a_jpeg_cut_anywhere_is_refused(kept: float, progressive: bool) -> None:
    data = encode(noise(200, 300), "JPEG", progressive=progressive, quality=95)
    assert refusal(data[: int(len(data) * kept)]) == "truncated"


def test_a_jpeg_cut_in_its_header_is_refused() -> None:
    data = encode(noise(20, 30), "JPEG")
    for kept in (2, 3, 4, 20, 100, data.index(b"\xff\xda")):
        assert refusal(data[:kept]) in ("truncated", "corrupt", "not_an_image")


def test_a_jpeg_without_its_last_byte_is_refused() -> None:
    assert refusal(encode(noise(50, 50), "JPEG")[:-1]) == "truncated"


def test_a_cut_jpeg_with_an_end_marker_is_refused() -> None:
    data = encode(noise(200, 300), "JPEG", quality=95)
    assert refusal(data[: len(data) * 2 // 3] + data[-2:]) == "corrupt"


def test_a_jpeg_with_stray_bytes_is_kept_and_noted() -> None:
    data = encode(noise(50, 50), "JPEG")
    start_of_scan = data.index(b"\xff\xda")
    found = decode(data[:start_of_scan] + b"stray" + data[start_of_scan:])
    assert found.notes == ("jpeg_warning",)
    assert difference(found.image, decode(data).image) == 0


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_cut_png_is_refused(kept: float) -> None:
    data = encode(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    assert refusal(data[: int(data.index(b"IEND") * kept)]) == "truncated"


def test_a_damaged_png_is_refused() -> None:
    data = bytearray(encode(noise(60, 60)))
    middle = data.index(b"IDAT") + 40
    data[middle : middle + 30] = bytes(30)
    assert refusal(bytes(data)) == "corrupt"


def test_what_is_no_image_is_refused() -> None:
    assert refusal(b"") == "empty"
    assert refusal(b"<html>404</html>") == "not_an_image"
    assert refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not_an_image"


def test_the_cap_is_checked_before_pixels_are_decoded() -> None:
    data = encode(noise(100, 100))
    header_only = data[: data.index(b"IDAT") + 8]
    assert refusal(header_only, max_pixels=9_999) == "too_large"
    assert decode(data, max_pixels=10_000).image.shape == (100, 100, 3)


def test_the_cap_holds_for_a_decompression_bomb() -> None:
    data = bytearray(encode(noise(8, 8)))
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # IHDR claims 3.6 gigapixels
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    assert refusal(bytes(data)) == "too_large"


def test_grayscale_is_repeated() -> None:
    gray = noise(30, 40)[..., 0]
    for format, tolerance in (("PNG", 0), ("JPEG", 2)):
        found = decode(encode(gray, format))
        assert found.notes == ("grayscale",)
        assert difference(found.image, np.stack([gray] * 3, axis=-1)) <= tolerance


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
    image = noise(40, 50)
    buffer = io.BytesIO()
    # Pillow writes CMYK inverted behind an Adobe marker, as Photoshop does.
    Image.fromarray(image).convert("CMYK").save(buffer, "JPEG", quality=98)
    data = buffer.getvalue()
    assert b"Adobe" in data
    found = decode(data)
    assert found.notes == ("cmyk",)
    assert difference(found.image, image) < 3


def test_palette_and_alpha() -> None:
    image = noise(20, 20)
    alpha = np.full((20, 20, 1), 7, np.uint8)
    found = decode(encode(np.concatenate([image, alpha], axis=-1)))
    assert found.notes == ("alpha",)
    np.testing.assert_array_equal(found.image, image)

    palette = Image.fromarray(image).quantize(8)
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


def test_float_pixels_are_refused() -> None:
    assert refusal(encode(np.ones((4, 4), np.float32), "TIFF")) == "unsupported"


def with_orientation(orientation: int, format: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(noise(30, 50), format, exif=exif)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_only_where_its_annotation_is(orientation: int, format: str) -> None:
    data = with_orientation(orientation, format)
    stored = decode(data, annotated_size=(30, 50))
    assert stored.image.shape == (30, 50, 3)
    assert stored.notes == (() if orientation == 1 else ("exif_ignored",))
    assert difference(stored.image, decode(encode(noise(30, 50), format)).image) == 0
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


@pytest.mark.filterwarnings("ignore:::PIL")
def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encode(noise(30, 50), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage")
    assert decode(data).image.shape == (30, 50, 3)


def test_another_size_than_annotated_is_refused() -> None:
    assert refusal(encode(noise(30, 50)), annotated_size=(31, 50)) == "size_mismatch"
    assert refusal(encode(noise(30, 50)), annotated_size=(50, 30)) == "size_mismatch"


def test_every_note_has_an_explanation() -> None:
    assert all(NOTES.values())
    assert all(REFUSALS.values())
