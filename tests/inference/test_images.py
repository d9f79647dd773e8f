"""Whatever a user has for an image becomes the same RGB pixels, or is refused with a reason."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from harmonic_jax.data.decode import ImageError
from harmonic_jax.inference import images
from harmonic_jax.inference.images import read_image
from tests.data.fake_source import encode, noise

RGB = noise(12, 16)
GREY = RGB[..., 0]


def read(image: object, **options: object) -> np.ndarray:
    return read_image(image, max_pixels=1000, **options)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".tif"])
def test_of_several_frames_the_first_is_taken_and_that_is_said_once(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images._tell_of_frames.cache_clear()
    frames = [Image.fromarray(noise(12, 16, seed=seed)) for seed in (1, 2)]
    for name in ("a", "b"):
        frames[0].save(tmp_path / f"{name}{suffix}", save_all=True, append_images=frames[1:])
        read(tmp_path / f"{name}{suffix}")
    said = f"of a {suffix} file with several frames the first is looked at"
    assert [record.getMessage() for record in caplog.records] == [said]
    frames[0].save(tmp_path / f"one{suffix}")
    images._tell_of_frames.cache_clear()
    read(tmp_path / f"one{suffix}")
    assert len(caplog.records) == 1


def test_arrays_of_every_kind() -> None:
    gray = np.repeat(GREY[..., None], 3, axis=2)
    alpha = np.concatenate([RGB, GREY[..., None]], axis=2)
    for array, expected in [
        (RGB, RGB),
        (GREY, gray),
        (GREY[..., None], gray),
        (alpha, RGB),
        (RGB[:, ::-1], RGB[:, ::-1]),  # not contiguous
        (RGB / 255.0, RGB),
        ((RGB / 255.0).astype(np.float16), RGB),
        ((RGB / np.float32(255)), RGB),
        (np.asfortranarray(RGB), RGB),
    ]:
        pixels = read(array)
        np.testing.assert_array_equal(pixels, expected)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "error", "words"),
    [
        (RGB.astype(np.float32), ValueError, "floats from 0 to 255"),
        (RGB / 127.5 - 1, ValueError, "they must lie in [0, 1]"),
        (np.where(RGB > 9, np.nan, 0.5), ValueError, "nan"),
        (RGB.astype(np.uint16), ValueError, "uint16, whose range is not certain"),
        (RGB.astype(np.int64), ValueError, "array.astype('uint8')"),
        (RGB > 99, ValueError, "bool"),
        (RGB.transpose(2, 0, 1), ValueError, "channels come last (array.transpose(1, 2, 0))"),
        (RGB[None], ValueError, "several images are a list"),
        (RGB[..., :2], ValueError, "(12, 16, 2)"),
        (RGB[0, :, 0], ValueError, "(16,)"),
        (RGB[:0], ValueError, "(0, 16, 3)"),
        (None, TypeError, "is no image"),
        (b"\x89PNG", TypeError, "is no image"),
    ],
)
def test_what_is_ambiguous_is_refused(array: object, error: type, words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        read(array)


def test_pil_images() -> None:
    """Their modes are those of files: tests/data."""
    see_through = Image.fromarray(RGB)
    see_through.putalpha(7)
    np.testing.assert_array_equal(read(see_through), RGB)
    gray = np.repeat(GREY[..., None], 3, axis=2)
    np.testing.assert_array_equal(read(Image.fromarray(GREY.astype(np.uint16) * 256 + 77)), gray)
    with pytest.raises(ImageError, match="unsupported"):
        read(Image.new("F", (4, 3)))


def test_files_and_their_limits(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encode(RGB))
    np.testing.assert_array_equal(read(path), RGB)
    np.testing.assert_array_equal(read(str(path)), RGB)
    for image in (path, Image.fromarray(RGB)):
        with pytest.raises(ImageError, match="12 x 16 pixels are more than max_pixels = 100"):
            read_image(image, max_pixels=100)
    broken = tmp_path / "broken.png"
    broken.write_bytes(encode(RGB)[:100])
    with pytest.raises(ImageError, match=re.escape(f"truncated: {broken}: ")):
        read(broken)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere.png")


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_photos_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    """As Pillow does it; and not at all where stored pixels are wanted."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(RGB).save(path, exif=exif)
    with Image.open(path) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
        np.testing.assert_array_equal(read(opened), RGB)
    np.testing.assert_array_equal(read(path), upright)
    np.testing.assert_array_equal(read(path, upright=False), RGB)
