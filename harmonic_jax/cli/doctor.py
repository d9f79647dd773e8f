"""What makes a training worse than it need be, found in the data before the first step."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from harmonic_jax.config import AnchorConfig, Config, RefineDetConfig, RTDETRConfig, SSDConfig
from harmonic_jax.data.records import DetectionSource, is_trainable
from harmonic_jax.data.resize import network_size
from harmonic_jax.detectors import refinedet, ssd
from harmonic_jax.detectors.parts.anchors import make_anchors
from harmonic_jax.training.evaluation import classes_found, listing

_MOST_BITS, _MOST_LEVELS = 6, 4.0  # of near copies: of 64 that differ, and of 255 on average
_MOST_OBJECTS = 5_000  # are held against anchors


def class_findings(one: DetectionSource, other: DetectionSource) -> Iterator[str]:
    """Classes with objects in one of two splits alone."""
    for a, b in ((one, other), (other, one)):
        if names := [name for name in classes_found(a) if name not in classes_found(b)]:
            yield (
                f"{b.name} has no object of {listing(names, most=5)}, {a.name} has: what is not "
                "trained on is never found, what is not evaluated has no AP; divide them anew"
            )


def near_copies(ours: np.ndarray, theirs: np.ndarray) -> dict[int, int]:
    """Of images uint8 [n, 8, 9] and [m, 8, 9] (gray) those that look alike, by place among ours.

    Their difference hashes, a bit for each two neighbours in a row, differ in 6 bits at most; and,
    since all skies have one hash, their gray levels by 4 of 255 on average.
    """
    hashes, others = (
        np.packbits(rows[..., 1:] > rows[..., :-1], axis=-1).reshape(-1, 8).view(np.uint64)[:, 0]
        for rows in (ours, theirs)
    )
    found = {}
    for place, bits in enumerate(hashes):
        near = np.flatnonzero(np.bitwise_count(others ^ bits) <= _MOST_BITS)
        levels = np.abs(theirs[near].astype(np.float32) - ours[place]).mean(axis=(1, 2))
        if (levels <= _MOST_LEVELS).any():
            found[place] = int(near[levels.argmin()])
    return found


def network_findings(source: DetectionSource, config: Config) -> Iterator[str]:
    """Objects that are too small for the detector, or that its anchors do not fit."""
    model: Any = config.model
    if isinstance(model, RTDETRConfig):  # it has neither anchors nor a threshold
        return
    part = getattr(model, "rpn", model)
    anchors: AnchorConfig | None = getattr(part, "anchors", None)
    # A region proposal network asks for .7, which the published anchors rarely reach.
    least = min(part.match.positive_iou, 0.5)
    boxes, shapes = _boxes_in_network(source, config)
    if not len(boxes):
        return
    iou, bound = _best_iou(boxes, shapes, config, anchors)
    # No IoU is above the ratio of the areas; and half of the finest stride is the least.
    bound = max(bound * least**0.5, 2 ** getattr(model, "levels", (3,))[0] / 2)
    is_small = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)) < bound
    missed = (iou < least).mean()
    if is_small.mean() >= 0.3:
        yield (
            f"{is_small.mean():.0%} of the objects of {source.name} are smaller than {bound:.0f} "
            f"pixels at data.short_sides {config.data.short_sides[-1]}, too small for any anchor: "
            "most will be missed; larger data.short_sides and max_side, or smaller anchors"
        )
    if anchors is not None and missed >= 0.1:
        fitted = _fit_anchors(boxes, model.levels, anchors)
        better = (_best_iou(boxes, shapes, config, fitted)[0] < least).mean()
        if missed - better >= 0.1:
            yield (
                f"{missed:.0%} of the objects of {source.name} have no anchor of IoU {least:g}: "
                f"each is learned from its best one alone; {better:.0%} with anchors={fitted}"
            )


def _boxes_in_network(source: DetectionSource, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, 4] to train on, as resized, and the padded shape [n, 2] of each one's image."""
    data, records = config.data, source.records
    rows = np.flatnonzero(is_trainable(records, data))
    rows = rows[:: len(rows) // _MOST_OBJECTS + 1]
    images, places = np.unique(records.owners[rows], return_inverse=True)
    sizes, side = records.sizes[images], data.short_sides[-1]
    shapes = [data.bucket_of(*size) for size in sizes.tolist()]
    resized = [
        network_size(height, width, data, bucket=shape, short_side=side)
        for (height, width), shape in zip(sizes.tolist(), shapes, strict=True)
    ]
    scale = (np.array(resized).reshape(-1, 2) / sizes)[places]
    return records.boxes[rows] * scale[:, [1, 0, 1, 0]], np.array(shapes)[places]


def _best_iou(
    boxes: np.ndarray, shapes: np.ndarray, config: Config, anchors: AnchorConfig | None
) -> tuple[np.ndarray, float]:
    """The highest IoU of each box with any anchor, [n], and the side of the smallest anchor.

    Of the anchors of one size and level the nearest is the best.
    """
    best, smallest = np.zeros(len(boxes)), np.inf
    for shape in np.unique(shapes, axis=0):
        chosen = (shapes == shape).all(axis=1)
        own = boxes[chosen]
        match config.model:
            case SSDConfig() as model:
                levels = ssd.default_boxes(model, shape.tolist())
            case RefineDetConfig() as model:
                levels = refinedet.default_boxes(model, shape.tolist())
            case model:
                assert not isinstance(model, RTDETRConfig)
                levels = make_anchors(shape.tolist(), model.levels, anchors or AnchorConfig())
        for level in levels:
            x, y = (np.unique(c) for c in ((level[:, :2] + level[:, 2:]) / 2).round(2).T)
            grid = level.reshape(len(y), len(x), -1, 4)
            center = (own[:, :2] + own[:, 2:]) / 2
            near = grid[np.abs(center[:, 1:] - y).argmin(1), np.abs(center[:, :1] - x).argmin(1)]
            best[chosen] = np.maximum(best[chosen], _iou(own[:, None], near).max(axis=1))
            smallest = min(smallest, (level[:, 2:] - level[:, :2]).prod(axis=1).min() ** 0.5)
    return best, smallest


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of boxes [.., 4] that broadcast; JAX would compile it for each level."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    overlap = sides.clip(0).prod(axis=-1)
    area, other = ((box[..., 2:] - box[..., :2]).prod(axis=-1) for box in (a, b))
    return overlap / (area + other - overlap)


def _fit_anchors(boxes: np.ndarray, levels: tuple[int, int], anchors: AnchorConfig) -> AnchorConfig:
    """As many scales and ratios, by k-means: each object belongs to the anchor that, on the same
    centre, overlaps it most, and a scale or ratio is the geometric mean of its objects'."""
    base = anchors.size_factor * 2.0 ** np.arange(levels[0], levels[1] + 1)
    sides = boxes[:, 2:] - boxes[:, :2]
    size, ratio = np.log(sides).mean(axis=1), np.log(sides[:, 1] / sides[:, 0])
    number, scales = len(anchors.ratios), np.array(anchors.scales)
    ratios = np.exp(np.quantile(ratio, (np.arange(number) + 0.5) / number))
    for _ in range(20):
        side = base[:, None, None] * scales[:, None]
        corners = np.stack([side / ratios**0.5, side * ratios**0.5], axis=-1).reshape(-1, 2)
        shapes = np.concatenate([-corners, corners], axis=1)
        nearest = _iou(np.concatenate([-sides, sides], axis=1)[:, None], shapes).argmax(axis=1)
        level, scale, kind = np.unravel_index(nearest, (len(base), len(scales), number))
        for i in np.unique(scale):
            scales[i] = np.exp((size - np.log(base[level]))[scale == i].mean())
        for i in np.unique(kind):
            ratios[i] = np.exp(ratio[kind == i].mean())
    scales, ratios = (np.unique(values.round(2).clip(0.01)) for values in (scales, ratios))
    return dataclasses.replace(
        anchors, scales=tuple(scales.tolist()), ratios=tuple(ratios.tolist())
    )
