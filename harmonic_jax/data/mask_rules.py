"""What happens to bad masks; an object keeps its box whatever its mask is.

A mask that cannot be used is stored empty. Empty means unknown: training takes no mask loss from
the object, the evaluation of masks ignores it, and whatever is done with boxes stays as it is
without masks.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from harmonic_jax.data.reasons import Reason
from harmonic_jax.masks import RleTable, encode_segmentations

_REASONS = {
    "missing": Reason.NO_MASK,
    "malformed": Reason.MALFORMED_MASK,
    "size": Reason.MASK_OF_OTHER_SIZE,
    "part": Reason.MALFORMED_POLYGON,
}


def usable_masks(
    segmentations: Iterable[Any], sizes: np.ndarray
) -> tuple[RleTable, dict[Reason, list[int]]]:
    """Compresses segmentations, and tells what was wrong with which.

    Args:
      segmentations: n of what `encode_segmentations` takes.
      sizes: int [n, 2], height and width of the image of each.

    Returns:
      n masks, an unusable one empty; the rows that each reason is about, each row with one.
    """
    masks, faults = encode_segmentations(segmentations, sizes)
    reasons = {fault.row: _REASONS[fault.kind] for fault in faults}
    for row in np.flatnonzero(masks.areas() == 0).tolist():
        if reasons.get(row, Reason.MALFORMED_POLYGON) is Reason.MALFORMED_POLYGON:
            reasons[row] = Reason.EMPTY_MASK
    rows: dict[Reason, list[int]] = {}
    for row in sorted(reasons):
        rows.setdefault(reasons[row], []).append(row)
    return masks, rows
