"""Objects on photos: what must be on them, and that nothing makes drawing fail."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from harmonic_jax.masks import encode_masks
from harmonic_jax.report.boxes import (
    OPACITY,
    PREDICTION_COLOR,
    TRUTH_COLOR,
    LabelledBoxes,
    detection_grid,
    draw_objects,
    save_png,
    text_mask,
)

NAMES = ("cat", "dog")


def gray(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def count(image: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((image == color).all(axis=-1).sum())


def boxes_at(*boxes: tuple[float, ...], label: int = 0, scores: object = None) -> LabelledBoxes:
    table = np.array(boxes, np.float32).reshape(-1, 4)
    scores = None if scores is None else np.array(scores)
    return LabelledBoxes(table, np.full(len(table), label), scores)


NOTHING = boxes_at()


def disc(height: int, width: int, x: int, y: int, radius: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def masked(mask: np.ndarray) -> LabelledBoxes:
    """A mask whose box lies outside of the picture."""
    return LabelledBoxes(np.full((1, 4), -9.0), np.zeros(1, int), masks=encode_masks(mask[None]))


def test_a_box_is_drawn_where_it_is_and_the_input_stays() -> None:
    image = gray(200, 300)
    drawn = draw_objects(image, boxes_at((100, 80, 250, 160), label=1), NAMES)
    assert (image == 128).all()
    for x, y in ((100, 120), (250, 120), (175, 80), (175, 160)):
        assert tuple(drawn[y, x]) == PREDICTION_COLOR
    assert tuple(drawn[120, 175]) == (128, 128, 128)
    assert (drawn[60:78, 100:130] != 128).any()  # its label
    assert (drawn[170:] == 128).all()


def test_truth_is_dashed_with_its_name_below() -> None:
    box = boxes_at((20, 20, 280, 160))
    solid = draw_objects(gray(200, 300), box, NAMES)
    dashed = draw_objects(gray(200, 300), NOTHING, NAMES, truth=box)
    assert (solid[60:140, 20] == PREDICTION_COLOR).all()
    assert 0.3 < (dashed[60:140, 20] == TRUTH_COLOR).all(axis=-1).mean() < 0.9
    assert (solid[165:] == 128).all()
    assert (dashed[:15] == 128).all()
    assert (dashed[165:] != 128).any()


def test_boxes_grow_with_the_picture_and_classes_have_colours_in_turn() -> None:
    two = LabelledBoxes(np.array([[5.0, 10, 20, 40], [30, 10, 45, 40]]), np.array([0, 3]))
    drawn = draw_objects(gray(50, 60), two, "abcd", size=(100, 180), colors=[(9, 8, 7), (3, 2, 1)])
    assert drawn.shape == (100, 180, 3)
    assert tuple(drawn[60, 15]) == tuple(drawn[60, 60]) == (9, 8, 7)
    assert tuple(drawn[60, 90]) == tuple(drawn[60, 135]) == (3, 2, 1)


def test_scores_and_names_are_part_of_the_label() -> None:
    box = (20, 50, 120, 150)
    pictures = [
        draw_objects(gray(200, 300), boxes_at(box, label=label, scores=scores), NAMES)
        for label, scores in ((0, None), (1, None), (0, [0.91]), (0, [0.52]))
    ]
    for i, first in enumerate(pictures):
        assert not any(np.array_equal(first, other) for other in pictures[i + 1 :])


def test_a_dollar_sign_in_a_name_is_a_dollar_sign() -> None:
    """Not the start of a formula, whose errors or italics would be shown instead."""
    assert text_mask("$\\x$", 13).shape[1] > text_mask("\\x", 13).shape[1]
    one, two = (text_mask(text, 13).shape[1] for text in ("a$", "a$$"))
    assert two > one


def test_labels_do_not_cover_each_other() -> None:
    """The second of two equal boxes gets another place, a tenth none."""
    one, two, many, more = (
        draw_objects(gray(200, 300), boxes_at(*[(40, 60, 240, 160)] * n), NAMES)
        for n in (1, 2, 10, 11)
    )
    assert count(one, PREDICTION_COLOR) < count(two, PREDICTION_COLOR)
    assert np.array_equal(many, more)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (30, 10), (200, 200)])
def test_odd_boxes_masks_and_images_do_not_fail(size: tuple[int, int]) -> None:
    boxes = boxes_at(
        (0, 0, 0, 0), (-50, -50, 500, 500), (9, 9, 2, 2), (1e6, 1e6, 2e6, 2e6), (0.4, 0.2, 0.9, 1),
        scores=[0.5] * 5,
    )  # fmt: skip
    for objects in (boxes, masked(np.zeros((4, 5), bool)), masked(np.ones((4, 5), bool))):
        drawn = draw_objects(gray(*size), objects, NAMES)
        assert drawn.shape == (*size, 3)
        assert drawn.dtype == np.uint8


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"image is float64 \(4, 4, 3\); it must be uint8"):
        draw_objects(np.zeros((4, 4, 3)), NOTHING, NAMES)
    for wrong in ({"labels": np.zeros(2, int)}, {"masks": encode_masks(np.zeros((2, 4, 4), bool))}):
        columns = {"boxes": np.zeros((1, 4)), "labels": np.zeros(1, int), **wrong}
        with pytest.raises(
            ValueError, match=r"boxes, labels, scores and masks have lengths \[1, 2"
        ):
            LabelledBoxes(**columns)


def test_grid_shows_truth_and_prediction_of_each_image(tmp_path: Path) -> None:
    images = [gray(60, 90), gray(120, 60), gray(30, 30), gray(50, 50)]
    truths = [boxes_at((10, 20, 60, 50)), NOTHING, NOTHING, NOTHING]
    predictions = [NOTHING, boxes_at((10, 50, 50, 100), scores=[0.8]), NOTHING, NOTHING]
    grid = detection_grid(images, truths, predictions, NAMES, columns=2, cell=200)
    blank = detection_grid(images, [NOTHING] * 4, [NOTHING] * 4, NAMES, columns=2, cell=200)
    assert grid.dtype == np.uint8
    assert grid.shape == blank.shape
    assert grid.shape[1] == 2 * 200 + 3 * 12
    middle = grid.shape[1] // 2
    new = [count(grid[:, :middle], c) - count(blank[:, :middle], c) for c in
           (TRUTH_COLOR, PREDICTION_COLOR)]  # fmt: skip
    assert new[0] > 100
    assert new[1] == 0
    assert count(grid[:, middle:], PREDICTION_COLOR) > count(blank[:, middle:], PREDICTION_COLOR)
    legend = blank[:44]
    assert min(count(legend, TRUTH_COLOR), count(legend, PREDICTION_COLOR)) > 50
    assert detection_grid([], [], [], NAMES).shape[0] < 60  # a legend alone
    # Both show where a prediction is exact.
    box = (20, 30, 80, 90)
    args = ([gray(100, 100)], [boxes_at(box)], [boxes_at(box, scores=[0.9])])
    grid = detection_grid(*args, NAMES, cell=300)
    edge = grid[-150:-120]
    assert min(count(edge, TRUTH_COLOR), count(edge, PREDICTION_COLOR)) > 10
    save_png(tmp_path / "a.png", grid)
    assert np.array_equal(cv2.imread(str(tmp_path / "a.png"))[:, :, ::-1], grid)


def test_masks_are_tinted_and_outlined_where_they_are() -> None:
    mask = masked(disc(100, 150, 60, 40, 20))  # at half the size
    filled = draw_objects(gray(200, 300), mask, NAMES)[20:]  # below the label
    outline = draw_objects(gray(200, 300), NOTHING, NAMES, truth=mask)[20:]
    inside = disc(200, 300, 120, 80, 35)[20:]
    tint = np.round(128 * (1 - OPACITY) + np.array(PREDICTION_COLOR) * OPACITY)
    assert (filled[inside] == tint).all()
    assert (filled[~disc(200, 300, 120, 80, 46)[20:]] == 128).all()
    assert (outline[inside] == 128).all()
    assert count(outline, TRUTH_COLOR) == count(filled, PREDICTION_COLOR) > 2 * 3 * 35
