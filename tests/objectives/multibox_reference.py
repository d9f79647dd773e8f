"""SSD's and RefineDet's losses as slow float64 loops, written from the formulas."""

import math

import numpy as np

from harmonic_jax.config import LossConfig

VARIANCES = np.array([0.1, 0.1, 0.2, 0.2])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0.0) * max(h, 0.0)
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return inter / (area - inter)


def assign(anchors: np.ndarray, boxes: np.ndarray, threshold: float) -> list[int]:
    """The object of each anchor or -1: the best pairs one to one, the others by overlap."""
    table = np.array([[iou(a, b) for b in boxes] for a in anchors]).reshape(len(anchors), -1)
    result = [-1] * len(anchors)
    pairs = sorted(((-table[n, g], n, g) for n, g in np.ndindex(table.shape)))
    anchors_left, objects_left = set(range(len(anchors))), set(range(len(boxes)))
    for value, n, g in pairs:
        if value < 0 and n in anchors_left and g in objects_left:
            result[n] = g
            anchors_left.remove(n)
            objects_left.remove(g)
    for n in anchors_left:
        if len(boxes) and table[n].max() >= threshold:
            result[n] = int(table[n].argmax())
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def encode(box: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    size, centre = anchor[2:] - anchor[:2], (anchor[:2] + anchor[2:]) / 2
    shift = ((box[:2] + box[2:]) / 2 - centre) / size
    return np.concatenate([shift, np.log((box[2:] - box[:2]) / size)]) / VARIANCES


def decode(deltas: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    size, centre = anchor[2:] - anchor[:2], (anchor[:2] + anchor[2:]) / 2
    d = deltas * VARIANCES
    centre, size = centre + d[:2] * size, size * np.exp(d[2:])
    return np.concatenate([centre - size / 2, centre + size / 2])


def positive_loss(
    logits: np.ndarray,
    label: int,
    deltas: np.ndarray,
    anchor: np.ndarray,
    box: np.ndarray,
    loss: LossConfig,
) -> float:
    p = softmax(logits)
    beta = loss.smooth_l1_beta
    distances = np.abs(deltas - encode(box, anchor))
    smooth = sum(d * d / 2 / beta if d < beta else d - beta / 2 for d in distances)
    cls = -math.log(p[label])
    if not loss.hardet:
        return cls + loss.box_weight * smooth
    u = iou(decode(deltas, anchor), box)
    entropy = -sum(x * math.log(x) for x in p)
    hiou = loss.alpha * (1 + u) ** loss.gamma * (1 - u)
    loc = loss.box_weight * smooth + hiou  # but the factor is of the unweighted loss
    contrast = max(0.0, abs(p[label] - u) - loss.margin) / (1 + math.exp(entropy))
    return (1 + math.exp(-smooth - hiou)) * cls + (1 + math.exp(-cls)) * loc + contrast


def image_loss(
    logits: np.ndarray,
    deltas: np.ndarray,
    anchors: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    loss: LossConfig,
    *,
    objectness: np.ndarray | None = None,
    min_objectness: float = 0.0,
    ratio: float = 3.0,
) -> tuple[float, int]:
    """Sum of one image's losses, and its positives."""
    background = logits.shape[-1] - 1
    owner = assign(anchors, boxes, 0.5)
    total, negatives, num_positive = 0.0, [], 0
    for n, g in enumerate(owner):
        if g >= 0:
            num_positive += 1
            total += positive_loss(logits[n], labels[g], deltas[n], anchors[n], boxes[g], loss)
        elif objectness is None or objectness[n] >= min_objectness:
            negatives.append(-math.log(softmax(logits[n])[background]))
    hardest = sorted(negatives, reverse=True)[: math.floor(ratio * num_positive)]
    return total + sum(hardest), num_positive
