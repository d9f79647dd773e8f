"""TFDS data sets by name, read from prepared files without TensorFlow."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.data.records import DataError, RecordTable
from harmonic_jax.data.report import DataReport, Reason
from harmonic_jax.data.rules import RawAnnotations, apply_rules
from harmonic_jax.data.tfds_builders import not_random_access, open_builders
from harmonic_jax.data.tfds_files import FEATURES, label_names, named_damage, open_split
from harmonic_jax.data.tfds_scan import MASK_FEATURE, Scan, scan_split

# COCO's ids of its 80 classes in the order of TFDS's labels: 1..90 without these ten.
_COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in _COCO_UNUSED)


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """One or more prepared TFDS splits, one after the other; a `DetectionSource`."""

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: RecordTable
    positions: np.ndarray
    """The example of each record."""
    parts: tuple[Sequence[Any], ...]
    """TFDS data sources with encoded images."""
    report: DataReport

    def image_bytes(self, index: int) -> bytes:
        """The encoded image of records[index]; raises OSError where it cannot be read."""
        position = int(self.positions[index])
        starts = list(itertools.accumulate(map(len, self.parts), initial=0))
        part = bisect.bisect_right(starts, position) - 1
        return self.parts[part][position - starts[part]]["image"]

    def fingerprint(self) -> str:
        """A hash of names, sizes and objects: changes where the data or their order change."""
        return self.records.fingerprint(self.class_names)


def tfds_splits(name: str, *, root: str | None) -> tuple[str, ...]:
    """The splits of a prepared data set; of several years as YEAR_SPLIT."""
    builders = open_builders(name, root)
    several = len(builders) > 1
    return tuple(
        f"{config}_{split}" if several else split
        for config, builder in builders.items()
        for split in builder.info.splits
    )


def read_tfds(
    name: str, split: str, *, root: str | None, max_objects: int, masks: bool = False
) -> TfdsSource:
    """Reads one split, or several joined by "+".

    Args:
      name: as for `open_builders`.
      split: what TFDS takes ("train", "train+validation", "train[:10%]"), and "trainval" and
        "val"; of several years of VOC, "2007_trainval+2012_trainval", where a split without a
        year is that of all, but for "test": the test set of 2007, the only one with objects.
      root: the TFDS data directory, or None for its default.
      max_objects: of more objects in an image, the surplus is counted.
      masks: also read the objects' masks, compressed run lengths in a text `segmentation`.

    Returns:
      The source; image ids are the data set's own, or positions where it has none.

    Raises:
      DataError: if the data are not prepared, the split is unknown, or the features are not
        those of a detection data set, or have no masks where they are wanted.
    """
    builders = open_builders(name, root)
    chosen = [choice for part in split.split("+") for choice in _choose(part.strip(), builders)]
    with named_damage(f"{chosen[0][0].data_dir}/{FEATURES}"):
        _check_features(name, chosen[0][0].info.features)
    class_names = label_names(chosen[0][0])
    if masks:
        _check_has_masks(name, chosen[0][0].info.features)
    parts = tuple(_examples(name, builder, part) for builder, part in chosen)
    scans = [
        scan_split(
            part, title=f"Reading {name} {text}", identity=_identity(builder, text), masks=masks
        )
        for part, (builder, text) in zip(parts, chosen, strict=True)
    ]
    report = DataReport()
    base = name.partition("/")[0]
    raw, positions = _to_raw(_join(scans), base, len(class_names), report)
    is_coco = base == "coco" and len(class_names) == len(COCO_CATEGORY_IDS)
    return TfdsSource(
        name=f"tfds:{name}:{split}",
        class_names=class_names,
        category_ids=COCO_CATEGORY_IDS if is_coco else tuple(range(1, len(class_names) + 1)),
        records=apply_rules(raw, class_names=class_names, max_objects=max_objects, report=report),
        positions=positions,
        parts=parts,
        report=report,
    )


def boxes_from_yxyx_norm(boxes_yxyx_norm: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """TFDS's boxes in pixels: (ymin, xmin, ymax, xmax) / (h, w, h, w) -> xyxy.

    Args:
      boxes_yxyx_norm: [n, 4], fractions of the image's height and width.
      sizes: [n, 2], height and width of each box's image, in pixels.

    Returns:
      float64 [n, 4], xyxy in pixels.

    Example:
      >>> boxes_from_yxyx_norm(np.array([[0.0, 0.25, 0.5, 1.0]]), np.array([[100, 200]]))
      array([[ 50.,   0., 200.,  50.]])
    """
    scales = np.concatenate([sizes, sizes], axis=1).astype(np.float64)
    return (boxes_yxyx_norm.astype(np.float64) * scales)[:, [1, 0, 3, 2]]


def _choose(part: str, builders: dict[str, Any]) -> list[tuple[Any, str]]:
    """The builders that one part of a split is about, and what TFDS calls it."""
    configs = [config for config in builders if config and part.startswith(f"{config}_")]
    if configs:
        part = part.removeprefix(f"{configs[0]}_")
    else:
        configs = list(builders)[: 1 if part == "test" else None]
    return [
        (builders[config], text)
        for config in configs
        for text in {"trainval": ("train", "validation"), "val": ("validation",)}.get(part, (part,))
    ]


def _check_features(name: str, features: Any) -> None:
    """Refuses features that are not those of boxes in images."""
    objects = getattr(features["objects"], "feature", {}) if "objects" in features else {}
    has_names = hasattr(objects, "keys") and {"bbox", "label"} <= set(objects)
    if "image" not in features or not has_names:
        raise DataError(
            f"TFDS data set {name!r} has features {', '.join(features)}; detection needs image "
            "and objects with bbox and label"
        )
    layout = getattr(objects["bbox"], "bbox_format", "no BBoxFeature: unknown")
    layout = str(getattr(layout, "value", layout or "REL_YXYX"))
    if layout != "REL_YXYX":
        raise DataError(f"TFDS data set {name!r} has {layout} boxes; only REL_YXYX can be read")
    if not hasattr(objects["label"], "names"):
        raise DataError(f"TFDS data set {name!r} has labels without names; they must be ClassLabel")


def _check_has_masks(name: str, features: Any) -> None:
    if MASK_FEATURE not in features["objects"].feature:
        raise DataError(
            f"data.masks is True, but the TFDS data set {name!r} has no instance masks; those of "
            "COCO are in its JSON files (data.format=coco); fashion_scenes has them too"
        )


def _examples(name: str, builder: Any, split: str) -> Sequence[Any]:
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as error:
        legal = ", ".join(builder.info.splits)
        raise DataError(f"TFDS data set {name!r} has no split {split!r}; it has {legal}") from error
    try:
        return open_split(builder, split)
    except NotImplementedError as error:
        raise not_random_access(name, builder) from error


def _identity(builder: Any, split: str) -> str:
    """Names a split's files as they are now."""
    files = sorted(Path(builder.data_dir).iterdir())
    states = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return "\n".join([str(builder.data_dir), split, *states])


def _join(scans: Sequence[Scan]) -> Scan:
    starts = itertools.accumulate((len(scan.file_names) for scan in scans), initial=0)
    arrays = {
        field.name: np.concatenate([getattr(scan, field.name) for scan in scans])
        for field in dataclasses.fields(Scan)
        if field.name not in ("file_names", "owners", "masks")
    }
    owners = [scan.owners + start for scan, start in zip(scans, starts, strict=False)]
    names = tuple(name for scan in scans for name in scan.file_names)
    masks = None
    if all(scan.masks is not None for scan in scans):
        masks = tuple(mask for scan in scans for mask in scan.masks or ())
    return Scan(file_names=names, owners=np.concatenate(owners), masks=masks, **arrays)


def _to_raw(
    scan: Scan, base: str, num_classes: int, report: DataReport
) -> tuple[RawAnnotations, np.ndarray]:
    """Drops what has no size or no class; also returns the examples that are left [m]."""
    names = [name or f"example {i}" for i, name in enumerate(scan.file_names)]
    is_readable = scan.sizes[:, 0] > 0
    has_class = (scan.labels >= 0) & (scan.labels < num_classes)
    kept = is_readable[scan.owners] & has_class
    faults = (
        (Reason.UNREADABLE_HEADER, np.flatnonzero(~is_readable)),
        (Reason.UNKNOWN_CLASS, scan.owners[is_readable[scan.owners] & ~has_class]),
    )
    for reason, images in faults:
        if len(images):
            report.add(reason, [names[i] for i in images])
    positions = np.flatnonzero(is_readable)
    has_ids = (scan.image_ids >= 0).all() and len(set(scan.image_ids.tolist())) == len(names)
    raw = RawAnnotations(
        image_ids=scan.image_ids[positions] if has_ids else positions,
        file_names=tuple(names[i] for i in positions),
        sizes=scan.sizes[positions],
        owners=(np.cumsum(is_readable) - 1)[scan.owners[kept]],
        boxes=boxes_from_yxyx_norm(scan.boxes_yxyx_norm[kept], scan.sizes[scan.owners[kept]]),
        labels=scan.labels[kept],
        is_crowd=scan.is_crowd[kept],
        is_difficult=scan.is_difficult[kept],
        area=scan.area[kept],
        masks=_segmentations(scan, kept),
        one_based=base == "voc",  # TFDS divides VOC's numbers by the size as they are
    )
    return raw, positions


def _segmentations(scan: Scan, kept: np.ndarray) -> list[dict[str, Any] | None] | None:
    """The masks of the objects that are left, as COCO's files have them; None: not asked for."""
    if scan.masks is None:
        return None
    sizes = scan.sizes[scan.owners].tolist()
    return [
        {"size": sizes[row], "counts": scan.masks[row]} if scan.masks[row] else None
        for row in np.flatnonzero(kept).tolist()
    ]
