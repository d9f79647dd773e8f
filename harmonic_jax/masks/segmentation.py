"""What a COCO file may call a segmentation -> compressed run lengths."""

from typing import Any

import numpy as np
import pycocotools.mask

from harmonic_jax.masks.codec import encode_runs, find_malformed


class MaskError(ValueError):
    """A segmentation that is no mask; `kind` is "missing", "malformed" or "size"."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def encode_segmentation(segmentation: Any, height: int, width: int) -> tuple[bytes, int]:
    """The run lengths of one object, as pycocotools draws them.

    Args:
      segmentation: polygons [[x, y, x, y, ..], ..], or a dict with `size` [height, width] and
        `counts`, compressed (text or bytes) or a list of run lengths.
      height, width: pixels of the image.

    Returns:
      The compressed counts, and how many polygons were left out as malformed: fewer than three
      points, an odd count, something that is no finite number, or a point further outside of the
      image than its longer side.

    Raises:
      MaskError: None or no polygons ("missing"); neither polygons nor run lengths, no usable
        polygon, or run lengths that do not add up ("malformed"); another image size ("size").

    Example:
      >>> encode_segmentation([[1, 1, 3, 1, 3, 3, 1, 3]], 4, 4)
      (b'52203', 0)
    """
    if segmentation is None or (isinstance(segmentation, list) and not segmentation):
        raise MaskError("missing", "there is no segmentation")
    if isinstance(segmentation, list):
        return _encode_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict):
        raise MaskError("malformed", "neither polygons nor run lengths")
    size = segmentation.get("size")
    if size != [height, width]:
        raise MaskError("size", f"its size is {str(size)[:40]}, the image's [{height}, {width}]")
    return _encode_counts(segmentation.get("counts"), height * width), 0


def is_compressible(polygon: Any, height: int, width: int) -> bool:
    """Whether pycocotools draws what was meant: a flat list of at least three near points."""
    try:
        points = np.asarray(polygon)
    except ValueError:  # lists of unequal lengths
        return False
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or points.dtype.kind not in "iuf":
        return False
    # Far points would overflow its integers. NaN fails both comparisons.
    side = max(height, width)
    return bool((points >= -side).all() and (points <= 2 * side).all())


def _encode_polygons(polygons: list[Any], height: int, width: int) -> tuple[bytes, int]:
    good = [polygon for polygon in polygons if is_compressible(polygon, height, width)]
    if not good:
        raise MaskError("malformed", "no polygon of three or more points in or near the image")
    parts = pycocotools.mask.frPyObjects(good, height, width)
    counts: bytes = pycocotools.mask.merge(parts)["counts"]
    return counts, len(polygons) - len(good)


def _encode_counts(counts: Any, area: int) -> bytes:
    if isinstance(counts, str):
        counts = counts.encode("latin-1", errors="replace")
    if not isinstance(counts, bytes):
        counts = _compress(counts)
    data = np.frombuffer(counts, np.uint8)
    if find_malformed(data, np.array([0, len(data)]), np.array([area]))[0]:
        raise MaskError("malformed", f"its run lengths do not add up to {area} pixels")
    return counts


def _compress(counts: Any) -> bytes:
    try:
        runs = np.asarray(counts)
    except ValueError:
        runs = np.zeros(0)
    if runs.ndim != 1 or not len(runs) or runs.dtype.kind not in "iu" or not _is_small(runs):
        raise MaskError("malformed", "its counts are neither text nor a list of whole numbers >= 0")
    return encode_runs(runs.astype(np.int64), np.array([0, len(runs)]))[0].tobytes()


def _is_small(runs: np.ndarray) -> bool:
    return bool(((runs >= 0) & (runs < 2**31)).all())
