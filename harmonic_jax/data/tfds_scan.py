"""One pass over a prepared TFDS split: everything but the pixels, kept for the next start.

TFDS stores an image and its objects in one record, and no image sizes at all, so that the
annotations of COCO lie scattered over 19 GB. The pass reads image headers, decodes nothing, and
is saved for large splits.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.data.folders import header_size
from harmonic_jax.data.records import DataError
from harmonic_jax.data.tfds_files import named_damage
from harmonic_jax.files import cache_folder, replacing
from harmonic_jax.terminal import Terminal, track

SAVED_FROM = 5_000  # images; fewer are read again in about two seconds
MASK_FEATURE = "segmentation"  # of an object: compressed run lengths as text
_LAYOUT = "2"  # change it with the fields below


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """What a split states, stored flat; m images and n objects.

    Attributes:
      image_ids: int64 [m]; -1 where the data set has none.
      file_names: m strings; empty where the data set has none.
      sizes: int32 [m, 2], stored height and width; 0 where the header is unreadable.
      owners: int64 [n], ascending: the image of each object.
      boxes_yxyx_norm: float32 [n, 4], as TFDS gives them.
      labels: int64 [n].
      is_crowd, is_difficult: bool [n].
      area: float64 [n]; NaN where the data set has none.
      masks: n compressed run lengths; None where they were not asked for.
    """

    image_ids: np.ndarray
    file_names: tuple[str, ...]
    sizes: np.ndarray
    owners: np.ndarray
    boxes_yxyx_norm: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    is_difficult: np.ndarray
    area: np.ndarray
    masks: tuple[bytes, ...] | None = None


def scan_split(examples: Sequence[Any], *, title: str, identity: str, masks: bool = False) -> Scan:
    """Reads every example once, or the saved result of an earlier pass.

    Args:
      examples: a TFDS data source whose images are left encoded.
      title: for the progress display.
      identity: changes whenever the files do; names the saved result.
      masks: read the objects' masks too.
    """
    key = f"{_LAYOUT} masks {identity}" if masks else _LAYOUT + identity
    folder = cache_folder()
    if folder is None or len(examples) < SAVED_FROM:
        return _scan(examples, title, masks=masks)
    path = folder / "annotations" / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
    if saved := _load(path, len(examples)):
        return saved
    scan = _scan(examples, title, masks=masks)
    _save(scan, path)
    return scan


def _scan(examples: Sequence[Any], title: str, *, masks: bool) -> Scan:
    images, names, sizes, counts = [], [], [], []
    keys = _OBJECT_KEYS | ({MASK_FEATURE: b""} if masks else {})
    objects: dict[str, list[Any]] = {key: [] for key in keys}
    try:
        for example in _with_progress(examples, title):
            images.append(_whole(example.get("image/id", -1)))
            names.append(_text(example.get("image/filename", b"")))
            sizes.append(header_size(example["image"]) or (0, 0))
            found = example["objects"]
            counts.append(len(found["bbox"]))
            for key, default in keys.items():
                objects[key].extend(found.get(key, [default] * counts[-1]))
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; prepare it again") from error
    with named_damage(title, "its objects have fields of other types than TFDS's coco has"):
        return Scan(
            image_ids=np.array(images, np.int64),
            file_names=tuple(names),
            sizes=np.array(sizes, np.int32).reshape(-1, 2),
            owners=np.repeat(np.arange(len(counts)), counts).astype(np.int64),
            boxes_yxyx_norm=np.array(objects["bbox"], np.float32).reshape(-1, 4),
            labels=np.array(objects["label"], np.int64),
            is_crowd=np.array(objects["is_crowd"], bool),
            is_difficult=np.array(objects["is_difficult"], bool),
            area=np.array(objects["area"], np.float64),
            masks=tuple(objects[MASK_FEATURE]) if masks else None,
        )


# What an object may have, and what it is worth where the data set does not say.
_OBJECT_KEYS = {
    "bbox": None, "label": None, "is_crowd": False, "is_difficult": False, "area": np.nan,
}  # fmt: skip


def _whole(value: Any) -> int:
    """An image id; -1, none, where it is no integer."""
    return int(value) if isinstance(value, int | np.integer) else -1


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _with_progress(examples: Sequence[Any], title: str) -> Any:
    return track(
        (examples[i] for i in range(len(examples))),
        len(examples),
        title,
        console=Terminal(stderr=True),
        enabled=len(examples) >= SAVED_FROM,
    )


def _load(path: Path, num_images: int) -> Scan | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            fields = dict(arrays)
        names = tuple(fields.pop("file_names").tobytes().decode().split("\0"))
        masks = fields.pop("masks", None)
        if masks is not None:
            masks = tuple(masks.tobytes().split(b"\0")[:-1])
        scan = Scan(file_names=names, masks=masks, **fields)
    except Exception:  # absent or damaged: it is only a copy, and is made again
        return None
    is_whole = len(scan.file_names) == len(scan.image_ids) == len(scan.sizes) == num_images
    return scan if is_whole else None


def _save(scan: Scan, path: Path) -> None:
    """Writes beside the place and renames, so that no other process sees half a file."""
    fields = {field.name: getattr(scan, field.name) for field in dataclasses.fields(scan)}
    fields["file_names"] = np.frombuffer("\0".join(scan.file_names).encode(), np.uint8)
    masks = fields.pop("masks")
    if masks is not None:
        fields["masks"] = np.frombuffer(b"".join(mask + b"\0" for mask in masks), np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            np.savez(partial, **fields)
    except OSError:  # a full or read-only disk costs the next start a pass, nothing else
        return
