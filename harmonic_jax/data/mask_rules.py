"""What happens to bad masks; an object keeps its box whatever its mask is.

A mask that cannot be used is stored empty. Empty means unknown: training takes no mask loss from
the object, the evaluation of masks ignores it, and whatever is done with boxes stays as it is
without masks.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from harmonic_jax.data.reasons import Reason
from harmonic_jax.masks import MaskError, RleTable, encode_segmentation

_REASONS = {
    "missing": Reason.NO_MASK,
    "malformed": Reason.MALFORMED_MASK,
    "size": Reason.MASK_OF_OTHER_SIZE,
}


def usable_masks(
    segmentations: Iterable[Any], sizes: np.ndarray
) -> tuple[RleTable, dict[Reason, list[int]]]:
    """Compresses segmentations, and tells what was wrong with which.

    Args:
      segmentations: n of what `encode_segmentation` takes.
      sizes: int [n, 2], height and width of the image of each.

    Returns:
      n masks, an unusable one empty; the rows that each reason is about, each row with one.
    """
    faults: dict[Reason, list[int]] = {reason: [] for reason in _REASONS.values()}
    partial, counts = [], []
    for row, (segmentation, (height, width)) in enumerate(
        zip(segmentations, sizes.tolist(), strict=True)
    ):
        try:
            rle, left_out = encode_segmentation(segmentation, height, width)
        except MaskError as error:
            faults[_REASONS[error.kind]].append(row)
            nothing = {"size": [height, width], "counts": [height * width]}
            rle, left_out = encode_segmentation(nothing, height, width)
        counts.append(rle)
        if left_out:
            partial.append(row)
    masks = RleTable.from_bytes(counts, sizes)
    known = set(itertools.chain(*faults.values()))
    empty = [row for row in np.flatnonzero(masks.areas() == 0).tolist() if row not in known]
    faults[Reason.EMPTY_MASK] = empty
    faults[Reason.MALFORMED_POLYGON] = sorted({*partial} - {*empty})
    return masks, faults
