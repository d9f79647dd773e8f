"""The entries of a results file as columns; a wrong one is named, with what it may be instead."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from harmonic_jax.coco_format.values import Id, as_int64, problem, unknown
from harmonic_jax.json_file import JsonFileError, shown
from harmonic_jax.metrics.tables import GroundTruthTable

_T = TypeVar("_T")
_LARGEST = 1e100  # the product of two is far from infinite
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_OTHER_TASKS = {
    "keypoints": "keypoints",
    "caption": "captions",
    "segments_info": "panoptic segments",
}


def entries_of(content: Any, name: str) -> list[dict[str, Any]]:
    """The entries of a results file.

    Raises:
      ValueError: it is of another kind.
    """
    legal = "it must be a list of objects with image_id, category_id, bbox and score"
    if isinstance(content, dict):
        raise JsonFileError(f"{name} holds an object, {_described(content)}; {legal}")
    if not isinstance(content, list):
        raise JsonFileError(f"{name} holds {shown(content)}; {legal}")
    for i, entry in enumerate(content):
        if not isinstance(entry, dict):
            raise JsonFileError(f"{name}[{i}] is {shown(entry)}; {legal}")
    return content


def _described(content: dict[str, Any]) -> str:
    if "images" in content and "annotations" in content:
        return "an annotation file"
    lists = [key for key, value in content.items() if isinstance(value, list)]
    if len(content) == 1 and lists:
        return f"with the key {shown(lists[0])} alone: write its list, without the object"
    if len(lists) == len(content) > 1:
        return f"with a list for each of {len(lists)} keys, {shown(lists[0])} ..: join the lists"
    return f"with the keys {', '.join(map(shown, list(content)[:8])) or 'none'}"


def column(
    entries: list[dict[str, Any]], field: str, legal: Callable[[Any], _T | None], name: str
) -> list[_T]:
    """A field of all entries, as `legal` reads it.

    Raises:
      ValueError: names the first entry in which it means nothing.
    """
    values = [legal(entry.get(field)) for entry in entries]
    if None in values:
        row = values.index(None)
        raise JsonFileError(f"{name}[{row}]: {wrong(entries[row], field, legal)}")
    return cast(list[_T], values)


def wrong(entry: dict[str, Any], field: str, legal: Callable[[Any], Any]) -> str:
    """What is wrong with a field of a result, and a hint where another kind of file is known."""
    kinds = [kind for key, kind in _OTHER_TASKS.items() if key in entry]
    hint = f" ({kinds[0]} are not evaluated; boxes and masks are)" if kinds else ""
    return problem(entry, field, legal) + hint


def known_images(written: Sequence[Id], truth: GroundTruthTable, name: str) -> np.ndarray:
    """The image ids of entries as the table has them, int64 [n].

    Raises:
      ValueError: one is not in the ground truth.
    """
    ids = np.array(written)
    if ids.dtype != np.int64:
        ids = np.array([as_int64(value) for value in written], np.int64)
    rows = np.flatnonzero(~np.isin(ids, truth.image_ids))
    if len(rows):
        value = written[rows[0]]
        known = {*truth.image_ids.tolist(), *truth.original_ids.values()}
        is_name = isinstance(value, str) and value.lower().endswith(_IMAGE_SUFFIXES)
        hint = "; it is a file name, where the id of the image should be" if is_name else ""
        what = unknown(value, known, "the ground truth")
        raise JsonFileError(f"{name}[{rows[0]}]: image_id {what}{_others(rows, ids)}{hint}")
    return ids


def labels_of(
    category_ids: Sequence[int] | np.ndarray, truth: GroundTruthTable, name: str
) -> np.ndarray:
    """The labels of entries, 0..k-1 in the order of the table's classes.

    Raises:
      ValueError: a category is not in the ground truth.
    """
    ids, known = np.asarray(category_ids).astype(np.int64), np.array(truth.category_ids, np.int64)
    rows = np.flatnonzero(~np.isin(ids, known))
    if len(rows):
        legal = ", ".join(map(str, truth.category_ids[:10])) + (", .." if len(known) > 10 else "")
        is_label = 0 not in known and ids.min() == 0 and ids.max() < len(known)
        hint = "; is it a label, counted from 0, and no category id?" if is_label else ""
        raise JsonFileError(
            f"{name}[{rows[0]}]: category_id {ids[rows[0]]} is not in the ground truth"
            f"{_others(rows, ids)}, whose ids are {legal}{hint}"
        )
    order = np.argsort(known)
    labels: np.ndarray = order[np.searchsorted(known, ids, sorter=order)]
    return labels


def _others(rows: np.ndarray, ids: np.ndarray) -> str:
    return f" ({len(rows)} of {len(ids)} entries have such ids)" if len(rows) > 1 else ""


def check_numbers(field: str, values: np.ndarray, name: str) -> None:
    """Refuses numbers [n] or [n, 4] that are not finite, or so large that an area would not be.

    Raises:
      ValueError: names the first entry with one.
    """
    good = (np.abs(values) <= _LARGEST).all(axis=tuple(range(1, values.ndim)))
    if not good.all():
        row = int(np.argmin(good))
        found = shown(values[row].tolist())
        raise JsonFileError(
            f"{name}[{row}]: {field} is {found}; numbers must be finite, up to 1e100"
        )
