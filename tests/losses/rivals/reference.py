"""The formulas in float64 NumPy, sample by sample, written from their sources, never from ours."""

import math
from collections import Counter

import numpy as np

from tests.losses.reference import bce, elementwise


def quality_focal(logits, labels, quality, beta=2.0):
    def f(p, is_label, i):
        y = quality[i] if is_label else 0.0
        return abs(y - p) ** beta * bce(p, y)

    return elementwise(logits, labels, f)


def varifocal(logits, labels, quality, alpha=0.75, gamma=2.0):
    def f(p, is_label, i):
        q = quality[i] if is_label else 0.0
        return q * bce(p, q) if q > 0 else -alpha * p**gamma * math.log(1 - p)

    return elementwise(logits, labels, f)


def task_alignment(prob, iou, objects, alpha=1.0, beta=6.0):
    t = [p**alpha * u**beta for p, u in zip(prob, iou, strict=True)]
    out = []
    for i, own in enumerate(objects):
        same = [j for j, other in enumerate(objects) if other == own]
        out.append(t[i] / max(t[j] for j in same) * max(iou[j] for j in same))
    return np.array(out)


def iou_balanced_cls(loss, iou, exponent=1.5):
    w = iou**exponent
    return w * (loss.sum() / (w * loss).sum()) * loss


def iou_balanced_loc(loss, iou, exponent=1.5):
    return iou**exponent * loss


def hierarchical_rank(iou, labels, objects):
    """In the words of the paper: rank within objects, then within classes by (rank, IoU)."""
    of_object = {}
    for own in set(objects):
        members = sorted((j for j in range(len(iou)) if objects[j] == own), key=lambda j: -iou[j])
        of_object |= {j: place for place, j in enumerate(members)}
    out = np.zeros(len(iou), int)
    for own in set(labels):
        members = [j for j in range(len(iou)) if labels[j] == own]
        members.sort(key=lambda j: (of_object[j], -iou[j]))
        for place, j in enumerate(members):
            out[j] = place
    return out


def isr(loss, iou, labels, objects, exponent=2.0, bias=0.0):
    n_max = max(Counter(labels).values())
    u = (n_max - hierarchical_rank(iou, labels, objects)) / n_max
    w = ((1 - bias) * u + bias) ** exponent
    return w * loss.sum() / (w * loss).sum() * loss


def carl(prob, loss, exponent=1.0, bias=0.2):
    v = ((1 - bias) * prob + bias) ** exponent
    return v / v.mean() * loss


def correlation(prob, iou, kind="concordance"):
    if kind == "pearson":
        return 1 - np.corrcoef(prob, iou)[0, 1]
    covariance = np.cov(prob, iou, ddof=0)
    square = (prob.mean() - iou.mean()) ** 2
    return 1 - 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + square)
