"""What a COCO file may call a segmentation -> compressed run lengths."""

import dataclasses
import reprlib
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from harmonic_jax.masks.rle import RleTable, encode_runs, find_malformed

_MOST_PIXELS = 2**31 - 1  # pycocotools counts them in 32 bits
_MOST_STEPS = 2**25  # of the outline of a polygon: 256 MiB while it is drawn


@dataclasses.dataclass(frozen=True)
class MaskFault:
    """Why a segmentation, or a part of it, is no mask.

    Attributes:
      kind: "missing": None or no polygons. "malformed": neither polygons nor run lengths, no usable
        polygon, or run lengths that do not add up. "size": those of another image size. All three
        leave the mask empty. "part": polygons were left out, the mask is made of the others.
    """

    row: int
    kind: Literal["missing", "malformed", "size", "part"]
    message: str


def encode_segmentations(
    segmentations: Iterable[Any], sizes: np.ndarray
) -> tuple[RleTable, list[MaskFault]]:
    """Compresses masks as pycocotools draws them.

    A polygon is left out that has fewer than three points, an odd count, something that is no
    finite number, or a point further outside of the image than its longer side.

    Args:
      segmentations: n of these: polygons [[x, y, x, y, ..], ..], or a dict with `size` [height,
        width] and `counts`, compressed (text or bytes) or a list of run lengths.
      sizes: int [n, 2], height and width of the image of each.

    Returns:
      n masks; what was wrong, at most one fault a row, by rising row.

    Example:
      >>> masks, faults = encode_segmentations([[[1, 1, 3, 1, 3, 3, 1, 3]], []], [[4, 4], [4, 4]])
      >>> masks[0]["counts"], masks.areas().tolist(), [fault.kind for fault in faults]
      (b'52203', [4, 0], ['missing'])
    """
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    faults: dict[int, MaskFault] = {}
    rows, stated = [], []
    for row, (segmentation, (height, width)) in enumerate(
        zip(segmentations, sizes.tolist(), strict=True)
    ):
        try:
            counts, left_out = _encode(segmentation, height, width)
            if isinstance(segmentation, dict):
                stated.append(row)
            if left_out:
                faults[row] = MaskFault(row, "part", f"{left_out} of its polygons are malformed")
        except _NoMaskError as error:
            counts = _nothing(height, width)
            faults[row] = MaskFault(row, error.kind, str(error))
        rows.append(counts)
    given = RleTable.from_bytes([rows[row] for row in stated], sizes[stated])
    for i in np.flatnonzero(find_malformed(given)).tolist():
        row, (height, width) = stated[i], sizes[stated[i]].tolist()
        message = f"its run lengths do not add up to {height} x {width} pixels"
        rows[row], faults[row] = _nothing(height, width), MaskFault(row, "malformed", message)
    return RleTable.from_bytes(rows, sizes), [faults[row] for row in sorted(faults)]


class _NoMaskError(ValueError):
    def __init__(self, kind: Literal["missing", "malformed", "size"], message: str):
        super().__init__(message)
        self.kind = kind


def _encode(segmentation: Any, height: int, width: int) -> tuple[bytes, int]:
    """Counts, those of compressed ones not yet checked; the number of polygons left out."""
    if segmentation is None or (isinstance(segmentation, list) and not segmentation):
        raise _NoMaskError("missing", "there is no segmentation")
    if height * width > _MOST_PIXELS:
        raise _NoMaskError("malformed", f"an image of {height} x {width} pixels is too large")
    if isinstance(segmentation, list):
        return _encode_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict):
        raise _NoMaskError("malformed", "neither polygons nor run lengths")
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        message = f"its size is {reprlib.repr(size)}, that of the image [{height}, {width}]"
        raise _NoMaskError("size", message)
    if isinstance(counts, str):
        return counts.encode("utf-8", errors="surrogatepass"), 0
    return (counts if isinstance(counts, bytes) else _compress(counts)), 0


def _nothing(height: int, width: int) -> bytes:
    return _compressed(np.array([min(height * width, _MOST_PIXELS)]))


def _compressed(runs: np.ndarray) -> bytes:
    return encode_runs(runs.astype(np.int64), np.array([0, len(runs)]))[0].tobytes()


def _is_drawable(polygon: Any, height: int, width: int) -> bool:
    """Whether pycocotools draws what was meant: a flat list of at least three near points."""
    try:
        points = np.asarray(polygon)
    except ValueError:  # lists of unequal lengths
        return False
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or points.dtype.kind not in "iuf":
        return False
    # Far points would overflow its integers. NaN fails both comparisons.
    side = max(height, width)
    if not ((points >= -side).all() and (points <= 2 * side).all()):
        return False
    # Of the outline it keeps five places for each pixel that it passes.
    corners = points.astype(np.float64).reshape(-1, 2)
    sides = np.abs(corners - np.roll(corners, -1, axis=0)).max(axis=1)
    return bool(5 * sides.sum() + len(corners) <= _MOST_STEPS)


def _encode_polygons(polygons: list[Any], height: int, width: int) -> tuple[bytes, int]:
    import pycocotools.mask

    good = [polygon for polygon in polygons if _is_drawable(polygon, height, width)]
    if not good:
        raise _NoMaskError("malformed", "no polygon of three or more points in or near the image")
    parts = pycocotools.mask.frPyObjects(good, height, width)
    counts: bytes = pycocotools.mask.merge(parts)["counts"]
    return counts, len(polygons) - len(good)


def _compress(counts: Any) -> bytes:
    try:
        runs = np.asarray(counts)
    except ValueError:
        runs = np.zeros(0)
    is_list = runs.ndim == 1 and len(runs) > 0 and runs.dtype.kind in "iu"
    if not is_list or not ((runs >= 0) & (runs < 2**31)).all():
        message = "its counts are neither text nor a list of whole numbers >= 0"
        raise _NoMaskError("malformed", message)
    return _compressed(runs)
