"""Suppressions as their papers define them: one box at a time, in float64 numpy.

Each takes the rows that take part and returns (row, score, box) of what is left, best first.
"""

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h
    return w * h / union


def best_first(rows, scores):
    return sorted(rows, key=lambda row: (-scores[row], row))


def greedy(boxes, scores, rows, threshold):
    kept = []
    for row in best_first(rows, scores):
        if all(iou(boxes[row], boxes[k]) <= threshold for k in kept):
            kept.append(row)
    return [(row, scores[row], boxes[row]) for row in kept]


def agnostic(boxes, scores, labels, rows, settings):
    return greedy(boxes, scores, rows, settings.iou)


def class_wise(boxes, scores, labels, rows, settings):
    found = []
    for label in np.unique(labels):
        found += greedy(boxes, scores, [r for r in rows if labels[r] == label], settings.iou)
    return sorted(found, key=lambda f: (-f[1], f[0]))


def soft(boxes, scores, labels, rows, weight, min_score):
    left = {row: float(scores[row]) for row in rows if scores[row] > min_score}
    found = []
    while left:
        best = best_first(left, left)[0]
        found.append((best, left.pop(best), boxes[best]))
        for row in left:
            if labels[row] == labels[best]:
                left[row] *= weight(iou(boxes[best], boxes[row]))
        left = {row: score for row, score in left.items() if score > min_score}
    return found


def soft_linear(boxes, scores, labels, rows, settings):
    def weight(u):
        return 1 - u if u > settings.iou else 1.0

    return soft(boxes, scores, labels, rows, weight, settings.min_score)


def soft_gaussian(boxes, scores, labels, rows, settings):
    def weight(u):
        return np.exp(-(u**2) / settings.sigma)

    return soft(boxes, scores, labels, rows, weight, settings.min_score)


def matrix(boxes, scores, labels, rows, settings):
    sigma, min_score = settings.sigma, settings.min_score
    ranked = best_first([r for r in rows if scores[r] > min_score], scores)
    ranked = ranked[: settings.max_candidates]
    worst = {}  # how far each box is suppressed itself
    found = []
    for place, j in enumerate(ranked):
        better = [i for i in ranked[:place] if labels[i] == labels[j]]
        overlaps = {i: iou(boxes[i], boxes[j]) for i in better}
        worst[j] = max(overlaps.values(), default=0.0)
        f = [np.exp(-(overlaps[i] ** 2) / sigma) / np.exp(-(worst[i] ** 2) / sigma) for i in better]
        found.append((place, j, scores[j] * min([1.0, *f])))
    found = sorted((f for f in found if f[2] > min_score), key=lambda f: (-f[2], f[0]))
    return [(j, score, boxes[j]) for _, j, score in found]


def weighted(boxes, scores, labels, rows, settings):
    found = []
    for k, score, box in class_wise(boxes, scores, labels, rows, settings):
        voters = [
            j
            for j in rows
            if labels[j] == labels[k] and (j == k or iou(boxes[k], boxes[j]) > settings.iou)
        ]
        total = sum(scores[j] for j in voters)
        mean = sum(scores[j] * boxes[j] for j in voters) / total if total else box
        found.append((k, score, mean))
    return found


def fusion(boxes, scores, labels, rows, settings):
    num_views = settings.num_views
    clusters: list[list[int]] = []

    def fused(cluster):
        return sum(scores[j] * boxes[j] for j in cluster) / sum(scores[j] for j in cluster)

    for row in best_first([r for r in rows if scores[r] > settings.min_score], scores):
        own = [c for c in clusters if labels[c[0]] == labels[row]]
        overlaps = [iou(fused(cluster), boxes[row]) for cluster in own]
        if overlaps and max(overlaps) > settings.iou:
            own[int(np.argmax(overlaps))].append(row)
        else:
            clusters.append([row])
    found = [
        (c[0], np.mean([scores[j] for j in c]) * min(len(c), num_views) / num_views, fused(c))
        for c in clusters
    ]
    order = sorted(range(len(found)), key=lambda c: (-found[c][1], c))
    return [found[c] for c in order]


LOOPS = {
    "class": class_wise,
    "agnostic": agnostic,
    "soft_linear": soft_linear,
    "soft_gaussian": soft_gaussian,
    "matrix": matrix,
    "weighted": weighted,
    "fusion": fusion,
}
