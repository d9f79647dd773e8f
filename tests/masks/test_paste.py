"""Masks in the image, against torchvision's paste_masks_in_image."""

from typing import Any

import cv2
import numpy as np
import pytest

from harmonic_jax.masks import paste_masks


def torchvision_paste() -> Any:
    torch = pytest.importorskip("torch", reason="torchvision's masks are the reference")
    try:
        from torchvision.models.detection.roi_heads import paste_masks_in_image
    except Exception as error:  # its compiled operators may be missing
        pytest.skip(f"torchvision cannot be imported: {error}")

    def paste(grids: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        tensors = torch.tensor(grids)[:, None], torch.tensor(boxes)
        pasted = paste_masks_in_image(*tensors, (height, width))
        return (pasted[:, 0] > 0.5).numpy()

    return paste


def blobs(rng: np.random.Generator, count: int) -> np.ndarray:
    coarse = rng.random((count, 7, 7)).astype(np.float32)
    grids = [cv2.resize(grid, (28, 28), interpolation=cv2.INTER_CUBIC) for grid in coarse]
    return np.stack(grids).clip(0, 1)


@pytest.mark.parametrize("seed", range(6))
def test_equals_torchvision(seed: int) -> None:
    """Boxes of all sizes, under a pixel too, inside the image and over its borders."""
    paste = torchvision_paste()
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(20, 300, 2))
    centre = rng.uniform(0, [width, height], (24, 2))
    sizes = rng.uniform(0.5, [width, height], (24, 2)) * rng.choice([0.1, 1.0], (24, 1))
    boxes = np.concatenate([centre - sizes / 2, centre + sizes / 2], axis=1).astype(np.float32)
    if seed % 2:
        boxes = boxes.clip(0, [width, height, width, height]).astype(np.float32)
    grids = blobs(rng, 24)
    expected = paste(grids, boxes, height, width)
    table = paste_masks(grids, boxes, height, width)
    for row in range(24):
        ours = table.decode(row)
        union = (ours | expected[row]).sum()
        assert union == 0 or (ours & expected[row]).sum() / union >= 0.99, boxes[row]
    assert sum(expected[row].any() for row in range(24)) > 12


def test_borders_of_the_image_in_the_run_lengths() -> None:
    """Runs that begin with the image, end with it, and go on from column to column."""
    full = np.ones((1, 28, 28), np.float32)
    for box, (left, top, right, bottom) in (
        ([-50, -50, 150, 150], (0, 0, 100, 80)),
        ([-50, -50, 20, 150], (0, 0, 20, 80)),
        ([20, -50, 150, 150], (20, 0, 100, 80)),
        ([10, -50, 20, 150], (10, 0, 20, 80)),
        ([10, 5, 20, 9], (10, 5, 20, 9)),
    ):
        table = paste_masks(full, np.array([box], np.float32), 80, 100)
        pixels = np.zeros((80, 100), bool)
        pixels[top:bottom, left:right] = True
        different = pixels ^ table.decode(0)
        # A pixel more or less where a border of the box lies inside of the image.
        different[:, [left - 1, left, right - 1, min(right, 99)]] = False
        different[[top - 1, top, bottom - 1, min(bottom, 79)]] = False
        assert not different.any(), box
        assert table.runs()[0].sum() == 100 * 80
        assert (table.runs()[0][1:] > 0).all()


@pytest.mark.parametrize(
    ("box", "area"),
    [
        ([120, 10, 150, 20], 0),
        ([-30, 10, -20, 20], 0),
        ([10, 90, 20, 99], 0),
        ([1e9, 1e9, 2e9, 2e9], 0),
        ([-1e8, -1e8, 1e8, 1e8], 8000),  # costs no more than the image
    ],
)
def test_boxes_outside_of_the_image(box: list[float], area: int) -> None:
    table = paste_masks(np.ones((1, 28, 28)), np.array([box]), 80, 100)
    assert table.areas().tolist() == [area]
    assert table.runs()[0].sum() == 8000


def test_the_threshold_is_a_probability_and_there_may_be_no_detections() -> None:
    grid, box = np.full((1, 28, 28), 0.6), np.array([[10.0, 10, 40, 40]])
    areas = [paste_masks(grid, box, 80, 100, threshold=t).areas()[0] for t in (0.5, 0.6001)]
    assert areas[0] >= 900
    assert areas[1] == 0
    table = paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), 80, 100)
    assert table.sizes.shape == (0, 2)
