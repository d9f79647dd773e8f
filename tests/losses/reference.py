"""The formulas in float64 NumPy, written sample by sample from their sources, never from ours."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

# What the three modes of `factor_gradient` let flow.
FLOWS = {
    "through": {"beta_c", "beta_r", "tc_iou", "tc_entropy"},
    "stop": set(),
    "cls_only": {"beta_c", "tc_entropy"},
}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def bce(p, y):
    return -(y * math.log(p) + (1 - y) * math.log(1 - p))


def elementwise(logits, labels, f):
    """f(p, is_label, sample) of every element."""
    return np.array(
        [
            [f(sigmoid(x), k == labels[i], i) for k, x in enumerate(row)]
            for i, row in enumerate(logits)
        ]
    )


def harmonic_iou(iou, gamma=0.8):
    return (1 + iou) ** gamma * (1 - iou)


def hardet(
    x, fixed=None, mode="through", alpha=1.5, gamma=0.8, margin=0.2, cls_weight=1, box_weight=1
):
    """HarDet of a dict of arrays; a factor that does not flow is computed from `fixed` instead.

    Differences of this function with respect to `x`, `fixed` held, are the gradient of a mode.
    """
    fixed = x if fixed is None else fixed

    def source(factor):
        return x if factor in FLOWS[mode] else fixed

    def loc(v, weight=1.0):  # the factors are those of the unweighted losses
        return weight * v["smooth_l1"] + alpha * harmonic_iou(v["iou"], gamma)

    beta_c_of = source("beta_c")
    beta_c = np.exp(-beta_c_of.get("cross_entropy", beta_c_of["cls_loss"]))
    beta_r = np.exp(-loc(source("beta_r")))
    distance = np.abs(x["prob"] - source("tc_iou")["iou"])
    weight = 1 / (1 + np.exp(source("tc_entropy")["entropy"]))
    contrastive = weight * np.maximum(0, distance - margin)
    cls = (1 + beta_r) * cls_weight * x["cls_loss"]
    return cls + (1 + beta_c) * loc(x, box_weight) + contrastive


def central_difference(f: Callable, x: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """Derivative of a per-sample function [n, ...] -> [n] in each coordinate of its sample."""
    flat = x.reshape(len(x), -1)
    columns = []
    for j in range(flat.shape[1]):
        step = np.zeros_like(flat)
        step[:, j] = h
        high, low = (flat + step).reshape(x.shape), (flat - step).reshape(x.shape)
        columns.append((f(high) - f(low)) / (2 * h))
    return np.stack(columns, axis=-1).reshape(x.shape)


def focal(logits, labels, alpha=0.25, gamma=2.0):
    def f(p, is_label, i):
        p_t = p if is_label else 1 - p
        weight = 1.0 if alpha is None else (alpha if is_label else 1 - alpha)
        return -weight * (1 - p_t) ** gamma * math.log(p_t)

    return elementwise(logits, labels, f)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def mask_loss(logits, targets):
    p = np.vectorize(sigmoid)(logits)
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean((-2, -1))


def smooth_l1(pred, target, beta=1.0):
    out = np.zeros(len(pred))
    for i, j in np.ndindex(*pred.shape):
        d = abs(pred[i, j] - target[i, j])
        out[i] += d * d / (2 * beta) if d < beta else d - beta / 2
    return out


def _area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def iou(a, b):
    meet = [max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]
    union = _area(a) + _area(b) - _area(meet)
    return _area(meet) / union if union > 0 else 0.0


def giou_loss(a, b):
    meet = [max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]
    union = _area(a) + _area(b) - _area(meet)
    hull = _area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    return 1 - (iou(a, b) - (hull - union) / hull)


def diou_loss(a, b):
    dx = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2
    dy = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2
    width = max(a[2], b[2]) - min(a[0], b[0])
    height = max(a[3], b[3]) - min(a[1], b[1])
    return 1 - iou(a, b) + (dx**2 + dy**2) / (width**2 + height**2)


def ciou_weight(a, b):
    v = _aspect(a, b)
    return v / (1 - iou(a, b) + v) if v > 0 else 0.0


def _aspect(a, b):
    angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (a, b)]
    return 4 / math.pi**2 * (angles[0] - angles[1]) ** 2


def ciou_loss(a, b, weight=None):
    """CIoU; `weight` stands for its alpha, which the gradient takes as a constant."""
    weight = ciou_weight(a, b) if weight is None else weight
    return diou_loss(a, b) + weight * _aspect(a, b)


def eiou_loss(a, b):
    width, height = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    dw, dh = (a[2] - a[0]) - (b[2] - b[0]), (a[3] - a[1]) - (b[3] - b[1])
    return diou_loss(a, b) + dw**2 / width**2 + dh**2 / height**2


# --- rivals


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


def ia_bce(logits, labels, quality, alpha=0.25, gamma=2.0, fixed=None):
    """`fixed`: logits that the target, a constant, is computed from instead."""
    fixed = logits if fixed is None else fixed

    def f(p, is_label, i):
        if not is_label:
            return p**gamma * bce(p, 0.0)
        score = sigmoid(fixed[i][labels[i]])
        return bce(p, score**alpha * quality[i] ** (1 - alpha))

    return elementwise(logits, labels, f)


def matchability_aware(logits, labels, quality, gamma=1.5):
    def f(p, is_label, i):
        return bce(p, quality[i] ** gamma) if is_label else -(p**gamma) * math.log(1 - p)

    return elementwise(logits, labels, f)


def position_supervised(logits, labels, target, gamma=2.0):
    def f(p, is_label, i):
        t = target[i] if is_label else 0.0
        return abs(t - p) ** gamma * bce(p, t)

    return elementwise(logits, labels, f)


def inner_iou_loss(a, b, ratio):
    def inner(box):
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        w, h = ratio * (box[2] - box[0]), ratio * (box[3] - box[1])
        return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]

    return 1 - iou(inner(a), inner(b))


def nwd_loss(a, b, constant):
    def gaussian(box):
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        return x, y, (box[2] - box[0]) / 2, (box[3] - box[1]) / 2

    return 1 - math.exp(-math.dist(gaussian(a), gaussian(b)) / constant)


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
