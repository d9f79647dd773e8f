"""Which masks of the same image and class overlap enough to match; the IoU is pycocotools'."""

import itertools

import numpy as np
import pycocotools.mask

from harmonic_jax.masks.rle import RleTable


def overlapping_masks(
    row: np.ndarray,
    gt: np.ndarray,
    group: np.ndarray,
    found: RleTable,
    truth: RleTable,
    is_crowd: np.ndarray,
    *,
    least: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs with an IoU of at least `least`, and their IoU.

    Areas and tight boxes bound the IoU from above; the pixels are compared only where the bound
    leaves it open, and one call of pycocotools serves all pairs of an image and class.

    Args:
      row, gt: int [p], the pairs to look at, by rising row.
      group: int [d], the image and class of each detection, rising.
      found: d masks.
      truth: g masks.
      is_crowd: bool [g]; of these the IoU is the share of the detection inside.
      least: the lowest IoU of interest.

    Raises:
      ValueError: a detection's mask is not of the size of its image.
    """
    wrong = (found.sizes[row] != truth.sizes[gt]).any(axis=1)
    if wrong.any():
        d, g = row[np.argmax(wrong)], gt[np.argmax(wrong)]
        sizes = found.sizes[d].tolist(), truth.sizes[g].tolist()
        raise ValueError(
            f"a detection's mask has the size {sizes[0]} and its image {sizes[1]} (height, width)"
        )
    can = _highest_iou(row, gt, found, truth, is_crowd) >= least
    row, gt = row[can], gt[can]
    iou = np.zeros(len(row))
    starts = np.flatnonzero(np.diff(group[row], prepend=-1))
    for start, stop in itertools.pairwise([*starts, len(row)]):
        pairs = slice(start, stop)
        rows, r = np.unique(row[pairs], return_inverse=True)
        gts, g = np.unique(gt[pairs], return_inverse=True)
        crowd = is_crowd[gts].astype(np.uint8).tolist()
        table = pycocotools.mask.iou([found[i] for i in rows], [truth[i] for i in gts], crowd)
        iou[pairs] = table[r, g]
    can = iou >= least
    return row[can], gt[can], iou[can]


def _highest_iou(
    row: np.ndarray, gt: np.ndarray, found: RleTable, truth: RleTable, is_crowd: np.ndarray
) -> np.ndarray:
    """What the IoU of each pair cannot exceed, from areas and boxes alone."""
    area, truth_area = found.areas()[row], truth.areas()[gt]
    box, truth_box = found.boxes()[row], truth.boxes()[gt]
    sides = np.minimum(box[:, 2:], truth_box[:, 2:]) - np.maximum(box[:, :2], truth_box[:, :2])
    shared = sides.clip(0).prod(axis=1)
    inter = np.minimum(np.minimum(area, truth_area), shared)
    union = np.where(is_crowd[gt], area, area + truth_area - inter)
    return np.where(inter > 0, inter / np.maximum(union, 1), 0.0)
