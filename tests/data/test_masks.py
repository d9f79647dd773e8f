"""Instance masks from COCO's files to the batch."""

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask
import pytest

from harmonic_jax.config import AugmentConfig, DataConfig
from harmonic_jax.data.loader import LoaderError, eval_batches, train_batches
from harmonic_jax.data.records import DataError
from harmonic_jax.data.report import Reason
from harmonic_jax.data.sample import mask_grids
from harmonic_jax.data.sources import open_source
from harmonic_jax.masks import encode_masks
from harmonic_jax.structures import Batch
from tests.data.coco_folder import counts, image, read, thing
from tests.data.coco_folder import write as write_coco
from tests.data.fake_source import FakeSource, encode, make_record, noise

# Grids


def overlaps(low: float, high: float, pixels: int, cells: int) -> np.ndarray:
    """How much of each cell each pixel covers [cells, pixels], from the two intervals."""
    borders = np.linspace(low, high, cells + 1)
    start, end = np.arange(pixels), np.arange(pixels) + 1
    shared = np.minimum(borders[1:, None], end) - np.maximum(borders[:-1, None], start)
    return shared.clip(0) / ((high - low) / cells)


def test_a_cell_is_the_average_of_its_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        masks = rng.random((5, height, width)) < rng.choice([0.0, 0.1, 0.7, 1.0], (5, 1, 1))
        corners = np.sort(rng.uniform(0, [[width], [height]], (5, 2, 2)), axis=2)
        boxes = np.stack([*corners[:, :, 0].T, *corners[:, :, 1].T], axis=1).astype(np.float32)
        boxes[0] = [0, 0, width, height]
        grids = mask_grids(encode_masks(masks), boxes, size=14)
        for grid, mask, (x1, y1, x2, y2) in zip(grids, masks, boxes.astype(float), strict=True):
            rows, columns = overlaps(y1, y2, height, 14), overlaps(x1, x2, width, 14)
            np.testing.assert_allclose(grid, 255 * (rows @ mask @ columns.T), atol=0.501)


def test_grids_of_no_masks_and_of_a_box_under_a_pixel() -> None:
    none = encode_masks(np.zeros((0, 5, 7), bool))
    assert mask_grids(none, np.zeros((0, 4)), size=28).shape == (0, 28, 28)
    masks = encode_masks(np.ones((1, 5, 7), bool))
    assert (mask_grids(masks, np.array([[3.2, 1.1, 3.2001, 1.1001]]), size=28) == 255).all()


# Samples and batches

AUGMENT = AugmentConfig(photometric=False, expand=1.6, crop=True, flip=0.5, vertical_flip=0.5)


def two_objects() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture with an ellipse and an L, their masks and boxes; the red channel is the masks."""
    masks = np.zeros((2, 60, 80), np.uint8)
    cv2.ellipse(masks[0], (22, 30), (14, 22), 20.0, 0, 360, 1, cv2.FILLED)
    masks[1, 8:50, 50:58] = masks[1, 42:50, 50:76] = 1
    boxes = encode_masks(masks).boxes()
    image = np.full((60, 80, 3), 40, np.uint8)
    image[..., 0] = 255 * masks.any(axis=0)
    return image, masks, boxes


def scene_source(**fields: Any) -> FakeSource:
    image, masks, boxes = two_objects()
    record = make_record(0, height=60, width=80, boxes=boxes, masks=masks, **fields)
    return FakeSource([record], [encode(image)])


def config(**fields: Any) -> DataConfig:
    defaults: dict[str, Any] = {
        "short_sides": (96,), "max_side": 128, "max_objects": 4, "masks": True,
        "mask_size": 56, "augment": AugmentConfig(flip=0.0),
    }  # fmt: skip
    return DataConfig(**(defaults | fields))


def batches_of(source: Any, settings: DataConfig, **options: int) -> list[Batch]:
    options = {"batch_size": 2, "seed": 0, "num_steps": 1} | options
    with train_batches(source, settings, **options) as batches:
        return list(batches)


def drawn(batch: Batch, row: int) -> np.ndarray:
    """The masks of one image drawn from grids and frames, bool [h, w]: each pixel's cell."""
    masks, height, width = batch.ground_truth.masks, *batch.images.shape[1:3]
    canvas = np.zeros((height, width), bool)
    y, x = np.mgrid[:height, :width] + 0.5
    for values, frame, valid in zip(
        masks.values[row], masks.frames[row], batch.ground_truth.valid[row], strict=True
    ):
        if valid:
            size = len(values)
            column = np.floor((x - frame[0]) / (frame[2] - frame[0]) * size).astype(int)
            line = np.floor((y - frame[1]) / (frame[3] - frame[1]) * size).astype(int)
            inside = (column >= 0) & (column < size) & (line >= 0) & (line < size)
            canvas[inside] |= values[line[inside], column[inside]] > 127
    return canvas


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(flip=1.0),
        AugmentConfig(flip=0.0, vertical_flip=1.0),
        AugmentConfig(flip=0.0, expand=2.0),
        AugmentConfig(flip=0.0, crop=True),
        AUGMENT,
    ],
)
@pytest.mark.parametrize("resize", ["fit", "warp"])
def test_masks_stay_on_their_objects(augment: AugmentConfig, resize: Any) -> None:
    """Whatever happens to the image, its red channel says where the masks must be."""
    settings = config(augment=augment, resize=resize)
    is_outside = False
    for batch in batches_of(scene_source(), settings, batch_size=8, num_steps=3):
        masks = batch.ground_truth.masks
        assert masks.values.dtype == np.uint8
        assert masks.values.shape == (8, 4, 56, 56)
        assert masks.frames.shape == (8, 4, 4)
        for row in range(8):
            number = int(batch.ground_truth.valid[row].sum())
            assert number >= 1
            assert not masks.values[row, number:].any()
            height, width = batch.image_size[row].astype(int)
            is_red = batch.images[row, :height, :width, 0] > 127
            is_drawn = drawn(batch, row)[:height, :width]
            if number == 2:  # a crop leaves pixels of objects that it drops
                assert (is_red & is_drawn).sum() / (is_red | is_drawn).sum() > 0.95
            assert (is_red & is_drawn).sum() > 0.95 * is_drawn.sum()
            frames, boxes = masks.frames[row, :number], batch.ground_truth.boxes[row, :number]
            limits = [width, height, width, height]
            np.testing.assert_allclose(frames.clip(0, limits), boxes, atol=1e-3)
            is_outside |= bool((frames != boxes).any())
    assert is_outside == augment.crop


def test_only_the_objects_that_are_kept_have_masks() -> None:
    _, masks, _ = two_objects()
    (batch,) = batches_of(scene_source(), config(max_objects=1), batch_size=1)
    largest = int(np.argmax([28 * 44, 26 * 42]))  # by their boxes, about
    expected = mask_grids(encode_masks(masks)[largest : largest + 1],
                          encode_masks(masks).boxes()[largest : largest + 1], size=56)  # fmt: skip
    np.testing.assert_array_equal(batch.ground_truth.masks.values[0], expected)
    (batch,) = batches_of(scene_source(crowd=(0,)), config(), batch_size=1)
    expected = mask_grids(encode_masks(masks)[1:], encode_masks(masks).boxes()[1:], size=56)
    np.testing.assert_array_equal(batch.ground_truth.masks.values[0, :1], expected)
    assert batch.ground_truth.valid[0].tolist() == [True, False, False, False]


def test_masks_change_nothing_else() -> None:
    source, settings = scene_source(), config(augment=AUGMENT)
    off = DataConfig(**{**vars(settings), "masks": False})
    for a, b in zip(batches_of(source, settings, num_steps=4),
                    batches_of(source, off, num_steps=4), strict=True):  # fmt: skip
        assert b.ground_truth.masks is None
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.ground_truth.boxes, b.ground_truth.boxes)
        np.testing.assert_array_equal(a.ground_truth.labels, b.ground_truth.labels)


def test_padding_images_and_evaluation() -> None:
    source = scene_source()
    source = FakeSource([*source.records, make_record(1, masks=np.ones((1, 24, 32)))],
                        [*source.files, b"nothing"])  # fmt: skip
    (batch,) = batches_of(source, config(), batch_size=2)
    blank = int(np.flatnonzero(~batch.is_real)[0])
    assert not batch.ground_truth.masks.values[blank].any()
    assert batch.ground_truth.masks.values[1 - blank].any()
    with eval_batches(source, config(), batch_size=2) as batches:
        assert all(batch.ground_truth.masks is None for batch in batches)


def test_a_source_opened_without_masks_is_an_error() -> None:
    source = FakeSource([make_record(0)], [encode(noise(24, 32))])
    with pytest.raises(LoaderError, match="source was opened without masks"):
        batches_of(source, config())


# COCO's files

SQUARE = [[10, 5, 20, 5, 20, 15, 10, 15]]
NAN = float("nan")


def write(root: Path, *segmentations: Any, **fields: Any) -> Path:
    """A folder with one image of 30 x 40 pixels and an object for each segmentation."""
    defaults = {"bbox": [10, 5, 10, 10], "area": 77.5, **fields}
    things = [thing(i, 1, segmentation=s, **defaults) for i, s in enumerate(segmentations)]
    root.mkdir(exist_ok=True)
    write_coco(root, [image(1, "a.png")], things)
    return root


def test_every_spelling_of_a_mask_is_the_same_mask(tmp_path: Path) -> None:
    expected = np.zeros((30, 40), bool)
    expected[5:15, 10:20] = True
    rle = encode_masks(expected[None])
    parts = [[10, 5, 14, 5, 14, 15, 10, 15], [14, 5, 20, 5, 20, 15, 14, 15]]
    compressed = {"size": [30, 40], "counts": rle[0]["counts"].decode()}
    runs = {"size": [30, 40], "counts": rle.runs()[0].tolist()}
    spare = [*SQUARE, [1, 2, 3, 4]]  # a bad polygon is left out and counted
    source = read(write(tmp_path, SQUARE, parts, compressed, runs, spare), masks=True)
    record = source.records[0]
    for row in range(5):
        np.testing.assert_array_equal(record.masks.decode(row), expected)
    assert record.area.tolist() == [77.5] * 5
    assert counts(source) == {Reason.DUPLICATE_OBJECT: 4, Reason.MALFORMED_POLYGON: 1}


BAD_MASKS: dict[Reason, list[Any]] = {
    Reason.NO_MASK: [None, []],
    Reason.MALFORMED_MASK: [
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, NAN, 6]],
        "mask",
        {"size": [30, 40], "counts": [3, 4]},
        {"size": [30, 40], "counts": "###"},
    ],
    Reason.MASK_OF_OTHER_SIZE: [{"size": [40, 30], "counts": [1200]}, {"counts": [1200]}],
    Reason.EMPTY_MASK: [
        {"size": [30, 40], "counts": [1200]},
        [[50, 5, 60, 5, 60, 9]],  # outside of the image
        [[10, 5, 10, 5, 10, 5]],  # a point
    ],
}


def test_a_bad_mask_is_unknown_and_the_box_stays(tmp_path: Path) -> None:
    cases = [(reason, case) for reason, masks in BAD_MASKS.items() for case in masks]
    boxes = [[10 + i / 4, 5, 10, 10] for i in range(len(cases) + 1)]
    things = [thing(i, 1, boxes[i], segmentation=case) for i, (_, case) in enumerate(cases)]
    things += [thing(88, 1, boxes[-1], segmentation=SQUARE), thing(99, 1, [1, 1, 0, 5])]
    del things[0]["segmentation"]
    write_coco(tmp_path, [image(1, "a.png")], things)
    source, plain = read(tmp_path, masks=True), read(tmp_path)
    record = source.records[0]
    assert record.masks.areas().tolist() == [0] * len(cases) + [100]
    np.testing.assert_array_equal(record.boxes, plain.records[0].boxes)
    expected = {reason: len(masks) for reason, masks in BAD_MASKS.items()}
    # A dropped object is not counted for its mask.
    assert counts(source) == {Reason.ZERO_SIZE: 1, **expected}
    assert counts(plain) == {Reason.ZERO_SIZE: 1}
    assert source.report.examples(Reason.NO_MASK)[0] == "a.png: dog (10, 5, 20, 15)"


def test_masks_are_asked_for_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    root = write(tmp_path / "a", SQUARE)
    on, off = (
        open_source(DataConfig(format="coco", root=str(root), masks=masks), "train")
        for masks in (True, False)
    )
    other = read(write(tmp_path / "b", [[10, 5, 20, 5, 20, 15, 10, 14]]), masks=True)
    assert off.records[0].masks is None
    assert pickle.loads(pickle.dumps(on)).fingerprint() == on.fingerprint()
    assert len({on.fingerprint(), off.fingerprint(), other.fingerprint()}) == 3
    np.testing.assert_array_equal(on.records.boxes, other.records.boxes)
    voc = DataConfig(format="voc", root=str(root), masks=True)
    with pytest.raises(DataError, match=r"data\.masks is True, but VOC XML has no"):
        open_source(voc, "train")


def test_real_annotations_are_drawn_as_pycocotools_draws_them(coco_tiny: Path) -> None:
    source, plain = read(coco_tiny, "val2017", masks=True), read(coco_tiny, "val2017")
    assert set(source.report.findings) == set(plain.report.findings)
    content = json.loads((coco_tiny / "annotations" / "instances_val2017.json").read_text())
    by_image: dict[int, list[Any]] = {}
    for entry in content["annotations"]:
        by_image.setdefault(entry["image_id"], []).append(entry["segmentation"])
    number = 0
    for record in source.records:
        for row, segmentation in enumerate(by_image.get(record.image_id, [])):
            rle = pycocotools.mask.frPyObjects(segmentation, record.height, record.width)
            rle = pycocotools.mask.merge(rle) if isinstance(rle, list) else rle
            assert record.masks[row] == rle
            number += 1
    assert number == len(source.records.boxes) == 815
    settings = config(short_sides=(128,), max_side=192, max_objects=100)
    for batch in batches_of(source, settings, batch_size=4, num_steps=2):
        shown = batch.ground_truth.masks.values[batch.ground_truth.valid]
        assert (shown.mean(axis=(1, 2)) > 20).all()
