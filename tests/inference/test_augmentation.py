"""Looks at other scales and in the mirror come back to the image's own pixels, and are merged."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harmonic_jax.config import ConfigError, DataConfig, MaskRCNNConfig
from harmonic_jax.data.sample import empty_batch
from harmonic_jax.inference.augmentation import (
    TTA,
    _suppression,
    look,
    merge_views,
    mirror_images,
    settled,
)
from harmonic_jax.inference.images import make_batch, shapes_at
from harmonic_jax.structures import Batch, Detections
from tests.training.tiny import tiny_config

SIZES = ((40, 56), (48, 64))  # of the images, on canvases of 48 x 64
OBJECTS = np.array([[5, 7, 20, 31], [30, 2, 47, 11]])


CONFIG = tiny_config()


def white_boxes_on(images: list[np.ndarray]) -> list[np.ndarray]:
    for image in images:
        for n, (x1, y1, x2, y2) in enumerate(OBJECTS):
            image[y1:y2, x1:x2] = 100 + 100 * n
    return images


def batch_of_two() -> Batch:
    blank = empty_batch(2, (48, 64), DataConfig(max_objects=1))
    images = np.full((2, 48, 64, 3), 9, np.uint8)  # padding, unlike any content
    for canvas, (height, width) in zip(images, SIZES, strict=True):
        canvas[:height, :width] = 0
    return dataclasses.replace(
        blank,
        images=np.stack(white_boxes_on(list(images))),
        image_size=np.array(SIZES, np.float32),
        scale=np.array([[2.0, 0.5], [1.0, 4.0]], np.float32),
        is_real=np.ones(2, bool),
    )


def finds_bright_pixels(batch: Batch) -> Detections:
    """A symmetric detector: the tight box of each brightness, and its mask's left half tinted."""
    boxes, masks = [], []
    for n in range(len(OBJECTS)):
        bright = jnp.asarray(batch.images)[..., 0] == 100 + 100 * n
        columns, rows = bright.any(axis=1), bright.any(axis=2)
        ends = [
            jnp.argmax(columns, axis=1),
            jnp.argmax(rows, axis=1),
            columns.shape[1] - jnp.argmax(columns[:, ::-1], axis=1),
            rows.shape[1] - jnp.argmax(rows[:, ::-1], axis=1),
        ]
        boxes.append(jnp.stack(ends, axis=-1).astype(jnp.float32))
        masks.append(jnp.tile(jnp.array([[1.0, 0.0]]), (2, 2, 1)))
    boxes = jnp.stack(boxes, axis=1) / jnp.tile(batch.scale[:, ::-1], 2)[:, None]
    valid = jnp.ones((2, 2), bool).at[0, 1].set(False)
    scores, labels = jnp.full((2, 2), 0.5), jnp.tile(jnp.arange(2), (2, 1))
    return Detections(boxes, scores, labels, valid, jnp.stack(masks, axis=1))


def test_mirrored_boxes_come_back_exactly() -> None:
    batch = batch_of_two()
    one_look = jax.jit(functools.partial(look, finds_bright_pixels))
    plain, mirrored = (jax.device_get(one_look(batch, flip)) for flip in (False, True))
    scale = np.tile(batch.scale[:, ::-1], 2)[:, None]
    valid = np.asarray(plain.valid)
    np.testing.assert_array_equal(plain.boxes[valid], (OBJECTS[None] / scale)[valid])
    np.testing.assert_array_equal(mirrored.boxes[valid], plain.boxes[valid])
    np.testing.assert_array_equal(mirrored.masks, np.asarray(plain.masks)[..., ::-1])


def test_mirroring_leaves_the_padding_where_it_is() -> None:
    batch = batch_of_two()
    mirrored = np.asarray(mirror_images(batch.images, batch.image_size))
    for image, canvas, (height, width) in zip(mirrored, batch.images, SIZES, strict=True):
        np.testing.assert_array_equal(image[:, :width], canvas[:, :width][:, ::-1])
        np.testing.assert_array_equal(image[:, width:], canvas[:, width:])
        assert (image[:height, width:] == 9).all()


def test_scales() -> None:
    data = DataConfig(short_sides=(64,), max_side=90, stride=32)
    assert shapes_at(data, (64, 96), 1.0) == (data, (64, 96))
    larger, bucket = shapes_at(data, (96, 64), 1.5)
    assert bucket == (160, 96)  # 144 is no multiple of 32
    assert (larger.short_sides, larger.max_side) == ((96,), 135)
    image = np.zeros((80, 40, 3), np.uint8)
    batch = make_batch([image], larger, bucket, batch_size=2)
    assert batch.image_size[0].tolist() == [135, 68]
    np.testing.assert_allclose(batch.scale[0], [135 / 80, 68 / 40])
    assert batch.record_index.tolist() == [0, -1]
    assert batch.is_real.tolist() == [True, False]
    warped = DataConfig(short_sides=(300,), max_side=300, resize="warp", stride=1)
    assert shapes_at(warped, (300, 300), 1.25)[1] == (375, 375)
    with pytest.raises(ConfigError, match=r"the scale 0.25 does not fit this run: data.short_s"):
        shapes_at(data, (64, 96), 0.25)


def three_views() -> Detections:
    """An object that all three see, each a little differently, and one that a single one sees."""
    boxes = np.array(
        [[0, 0, 10, 10], [0, 0, 0, 0], [0, 0, 10, 12], [50, 50, 60, 60], [0, 0, 10, 11], [0] * 4],
        np.float32,
    )
    scores = np.array([0.4, 0.9, 0.8, 0.6, 0.6, 0.0], np.float32)
    valid = np.array([True, False, True, True, True, False])
    masks = np.arange(6, dtype=np.float32)[:, None, None] / 10
    return Detections(boxes, scores, np.array([1, 0, 1, 0, 1, 0]), valid, masks)


def merged(tta: TTA) -> Detections:
    settings = dataclasses.replace(CONFIG.model.postprocess, nms_iou=0.5, max_detections=4)
    config = dataclasses.replace(
        CONFIG, model=dataclasses.replace(CONFIG.model, postprocess=settings)
    )
    merge = functools.partial(merge_views, settings=_suppression(tta, config))
    found: Detections = jax.device_get(jax.jit(merge)(three_views()))
    return found


THREE = functools.partial(TTA, scales=(0.5, 1.0, 2.0), flip=False)


@pytest.mark.parametrize(
    ("tta", "scores", "bottom"),
    [
        (THREE(merge="nms"), [0.8, 0.6], 12.0),
        (THREE(merge="nms", merge_iou=0.9), [0.8, 0.6, 0.4], 12.0),
        (
            THREE(merge="wbf"),
            [(0.4 + 0.8 + 0.6) / 3, 0.6 / 3],
            (0.4 * 10 + 0.8 * 12 + 0.6 * 11) / (0.4 + 0.8 + 0.6),
        ),
    ],
)
def test_merging_by_hand(tta: TTA, scores: list[float], bottom: float) -> None:
    found = merged(tta)
    number = int(found.valid.sum())
    np.testing.assert_allclose(found.scores[:number], scores, rtol=1e-6)
    assert found.labels[:2].tolist() == [1, 0]
    np.testing.assert_allclose(found.boxes[0], [0, 0, 10, bottom], rtol=1e-6)
    np.testing.assert_allclose(found.masks[:2].ravel(), [0.2, 0.3])  # of the best of each
    assert not np.any(found.boxes[number:])
    assert not np.any(found.masks[number:])


def test_soft_merging_keeps_what_it_lowers() -> None:
    found = merged(THREE(merge="soft_nms"))
    second = 0.6 * np.exp(-((11 / 12) ** 2) / 0.5)
    assert int(found.valid.sum()) == 4
    np.testing.assert_allclose(found.scores[:3], [0.8, 0.6, second], rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scales": ()}, "tta.scales"),
        ({"scales": (1.0, 1.0)}, "different factors"),
        ({"merge": "soft_nms", "merge_iou": 0.5}, "None with merge = soft_nms"),
    ],
)
def test_settings_that_cannot_work(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TTA(**values)


def test_masks_are_not_fused() -> None:
    boxes = tiny_config()
    masks = dataclasses.replace(boxes, model=MaskRCNNConfig())
    assert settled(TTA(), boxes).merge == "wbf"
    assert settled(TTA(), masks) == TTA(merge="nms")
    for tta in (TTA(merge="nms"), TTA(merge="soft_nms")):
        assert settled(tta, boxes) == settled(tta, masks) == tta
    assert settled(TTA(merge="wbf"), boxes) == TTA(merge="wbf")
    with pytest.raises(ConfigError, match="it must be nms or soft_nms"):
        settled(TTA(merge="wbf"), masks)
