"""What detectors compute, as slow float64 loops written from the formulas."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from harmonic_jax.config import LossConfig, MatchConfig
from tests.losses import reference as plain
from tests.losses.reference import softmax

SSD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # the inverse of the variances 0.1 0.1 0.2 0.2
ONES = (1.0, 1.0, 1.0, 1.0)


def iou_table(a: Any, b: Any) -> np.ndarray:
    """[n 4], [m 4] -> [n m]; 0 of empty boxes."""
    a, b = (np.asarray(x, np.float64).reshape(-1, 4) for x in (a, b))
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    areas = [(x[:, 2:] - x[:, :2]).prod(-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1] - overlap
    return np.divide(overlap, union, out=np.zeros_like(union), where=union > 0)


def encode(box: np.ndarray, anchor: np.ndarray, weights: Sequence[float] = ONES) -> np.ndarray:
    size, centre = anchor[2:] - anchor[:2], (anchor[:2] + anchor[2:]) / 2
    shift = ((box[:2] + box[2:]) / 2 - centre) / size
    return np.concatenate([shift, np.log((box[2:] - box[:2]) / size)]) * weights


def decode(deltas: np.ndarray, anchor: np.ndarray, weights: Sequence[float] = ONES) -> np.ndarray:
    size, centre = anchor[2:] - anchor[:2], (anchor[:2] + anchor[2:]) / 2
    deltas = deltas / np.array(weights)
    centre, half = centre + deltas[:2] * size, size * np.exp(deltas[2:]) / 2
    return np.concatenate([centre - half, centre + half])


def smooth_l1(difference: np.ndarray, beta: float) -> float:
    return float(plain.smooth_l1(difference[None], 0 * difference[None], beta)[0])


def focal(logits: np.ndarray, label: int, loss: LossConfig) -> float:
    """Of all classes; a label that is no class is background."""
    return float(plain.focal(logits[None], [label], loss.focal_alpha, loss.focal_gamma).sum())


def match_by_overlap(
    anchors: np.ndarray, boxes: np.ndarray, match: MatchConfig
) -> list[int | None]:
    """For each anchor the index of its box, -1 for background, None for ignored."""
    if len(boxes) == 0:
        return [-1] * len(anchors)
    table = iou_table(anchors, boxes)
    result: list[int | None] = []
    for row in table:
        best = int(row.argmax())
        if row[best] >= match.positive_iou:
            result.append(best)
        else:
            result.append(None if row[best] >= match.negative_iou else -1)
    if match.low_quality:
        for column in table.T:
            top = column.max()  # anchors of a grid tie but for rounding
            for n in np.flatnonzero((column >= (1 - 1e-6) * top) & (top > 0)):
                result[n] = int(table[n].argmax())
    return result


def match_one_to_one(anchors: np.ndarray, boxes: np.ndarray, threshold: float) -> list[int]:
    """For each default box the index of its object or -1: the best pairs first, then by overlap."""
    table = iou_table(anchors, boxes)
    result = [-1] * len(anchors)
    free = table.copy()
    while free.size and free.max() > 0:
        n, g = np.unravel_index(free.argmax(), free.shape)
        result[n] = int(g)
        free[n], free[:, g] = 0, 0
    for n in range(len(anchors)):
        if result[n] < 0 and len(boxes) and table[n].max() >= threshold:
            result[n] = int(table[n].argmax())
    return result


def positive(
    cls: float,
    p: float,
    entropy: float,
    deltas: np.ndarray,
    anchor: np.ndarray,
    box: np.ndarray,
    loss: LossConfig,
    weights: Sequence[float] = ONES,
) -> float:
    """A positive's loss: HarDet's formula, or the sum of both."""
    smooth = smooth_l1(deltas - encode(box, anchor, weights), loss.smooth_l1_beta)
    if not loss.hardet:
        return loss.cls_weight * cls + loss.box_weight * smooth
    parts = {"cls_loss": cls, "smooth_l1": smooth, "prob": p, "entropy": entropy}
    parts["iou"] = plain.iou(decode(deltas, anchor, weights), box)
    if loss.factor_source == "ce":
        parts["cross_entropy"] = -math.log(p)
    names = ("alpha", "gamma", "margin", "cls_weight", "box_weight")
    constants = {name: getattr(loss, name) for name in names}
    return float(plain.hardet(parts, **constants))


def sigmoid_positive(logits: np.ndarray, label: int, *boxes: np.ndarray, loss: LossConfig) -> float:
    """A positive anchor of RetinaNet: its deltas, the anchor, the object."""
    p = plain.sigmoid(logits[label])
    return positive(focal(logits, label, loss), p, plain.bce(p, p), *boxes, loss)


def softmax_positive(logits: np.ndarray, label: int, *boxes: np.ndarray, loss: LossConfig) -> float:
    """A positive of SSD, RefineDet or a RoI head; background is the last class."""
    probs = softmax(logits)
    entropy = -(probs * np.log(probs)).sum()
    return positive(
        -math.log(probs[label]), probs[label], entropy, *boxes, loss, weights=SSD_WEIGHTS
    )


def multibox_loss(
    logits: np.ndarray,
    deltas: np.ndarray,
    anchors: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    loss: LossConfig,
    *,
    is_candidate: np.ndarray | None = None,
    ratio: float = 3.0,
) -> tuple[float, int]:
    """Sum of one image's losses, and its positives; negatives are candidates."""
    total, negatives, num_positive = 0.0, [], 0
    for n, g in enumerate(match_one_to_one(anchors, boxes, 0.5)):
        if g >= 0:
            num_positive += 1
            total += softmax_positive(
                logits[n], labels[g], deltas[n], anchors[n], boxes[g], loss=loss
            )
        elif is_candidate is None or is_candidate[n]:
            negatives.append(-math.log(softmax(logits[n])[-1]))
    hardest = sorted(negatives, reverse=True)[: math.floor(ratio * num_positive)]
    return total + loss.cls_weight * sum(hardest), num_positive


Scored = tuple[float, int, np.ndarray]


def suppress(candidates: list[Scored], threshold: float, most: int | None = None) -> list[Scored]:
    """Of (score, label, box) the best, and each that overlaps no better one of its label."""
    kept: list[Scored] = []
    for candidate in sorted(candidates, key=lambda c: -c[0]):
        same = [box for _, label, box in kept if label == candidate[1]]
        if iou_table(same, candidate[2]).max(initial=0.0) <= threshold:
            kept.append(candidate)
    return kept[:most]


def assert_detections(found: object, expected: list[Scored]) -> None:
    """The rows of one image are the expected ones, best first, and zeros behind them."""
    n, valid = len(expected), np.asarray(found.valid)
    np.testing.assert_array_equal(valid, np.arange(len(valid)) < n)
    boxes, scores, labels = (np.asarray(a) for a in (found.boxes, found.scores, found.labels))
    assert labels[:n].tolist() == [label for _, label, _ in expected]
    np.testing.assert_allclose(scores[:n], [score for score, _, _ in expected], rtol=1e-5)
    np.testing.assert_allclose(
        boxes[:n], np.array([box for _, _, box in expected]).reshape(n, 4), atol=1e-3
    )
    assert not any(np.any(values[n:]) for values in (boxes, scores, labels))
