"""TFDS data sets by name, prepared before and read from their files without TensorFlow.

TFDS is imported inside the functions: it takes a second, and folders do without it.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.data.folders import header_size
from harmonic_jax.data.records import Annotations, DataError, DetectionSource
from harmonic_jax.data.report import DataReport, Reason
from harmonic_jax.data.rules import apply_rules
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.data.tfds_files import (
    FEATURES,
    INFO,
    PreparedExamples,
    label_names,
    named_damage,
    open_prepared,
)
from harmonic_jax.files import cache_folder, make_folder, replacing
from harmonic_jax.terminal import Terminal, track

SCENES = "fashion_scenes"
# COCO's ids of its 80 classes in the order of TFDS's labels: 1..90 without these ten.
_COCO_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in _COCO_UNUSED)
SAVED_FROM = 5_000  # images; fewer are read again in about two seconds
_LAYOUT = "4"  # of a saved pass: change it with what is in one
_MASKS = "segmentation"  # of an object: compressed run lengths as text
# What an object may have, and what it is worth where the data set does not say.
_DEFAULTS = {"is_crowd": False, "is_difficult": False, "area": np.nan, _MASKS: b""}
_OBJECT_FIELDS = {"bbox": None, "label": None, **_DEFAULTS}


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource(DetectionSource):
    """One or more prepared TFDS splits, one after the other; `positions` has each record's."""

    positions: np.ndarray
    examples: PreparedExamples

    def image_bytes(self, index: int) -> bytes:
        encoded: bytes = self.examples[int(self.positions[index])]["image"]
        return encoded


def tfds_splits(config: DataConfig) -> tuple[str, ...]:
    """The splits of a prepared data set; of several years as YEAR_SPLIT."""
    builders = open_builders(config)
    several = len(builders) > 1
    return tuple(
        f"{variant}_{split}" if several else split
        for variant, builder in builders.items()
        for split in builder.info.splits
    )


def read_tfds(config: DataConfig, split: str) -> TfdsSource:
    """Reads one split, or several joined by "+".

    Args:
      config: `name` and `root` as for `open_builders`; of more than `max_objects` in an image, the
        surplus is counted; `masks` says whether to read the objects' masks too, compressed run
        lengths in a text `segmentation`.
      split: what TFDS takes ("train", "train+validation", "train[:10%]"), and "trainval" and
        "val"; of several years of VOC, "2007_trainval+2012_trainval", where a split without a
        year is that of all, but for "test": the test set of 2007, the only one with objects.

    Returns:
      The source; image ids are the data set's own, or positions where it has none.

    Raises:
      DataError: if the data are not prepared, the split is unknown, or the features are not
        those of a detection data set, or have no masks where they are wanted.
    """
    builders = open_builders(config)
    chosen = [choice for part in split.split("+") for choice in _choose(part.strip(), builders)]
    first = chosen[0][0]
    with named_damage(f"{first.data_dir}/{FEATURES}"):
        _check_features(config, first.info.features)
    class_names = label_names(first)
    examples = PreparedExamples(chosen)
    name, report = f"{config.name}:{split}", DataReport()
    identity = "\n".join(_identity(builder, part) for builder, part in chosen)
    read = _read_once(examples, name, identity, masks=config.masks)
    raw, positions = _usable(read, len(class_names), report)
    base = config.name.partition("/")[0]
    # TFDS divides VOC's numbers, which count from 1, by the size as they are.
    records = apply_rules(
        raw, config, class_names=class_names, report=report, one_based=base == "voc"
    )
    is_coco = base == "coco" and len(class_names) == len(COCO_CATEGORY_IDS)
    ids = COCO_CATEGORY_IDS if is_coco else tuple(range(1, len(class_names) + 1))
    return TfdsSource(f"tfds:{name}", class_names, ids, records, report, positions, examples)


# From a name to builders


def open_builders(config: DataConfig) -> dict[str, Any]:
    """Opens the prepared data of a name.

    Args:
      config: `name` is a TFDS name such as "coco/2017" or "coco/2017:1.1.0"; "voc/2007+2012" is
        two. `root` is the TFDS data directory; None: $TFDS_DATA_DIR, or else ~/tensorflow_datasets
        (in the current folder for a user without a home).

    Returns:
      TFDS builders by variant ("2007", "2012"; "" where the name has none).

    Raises:
      DataError: if it is not prepared there; the message has the command that prepares it.
    """
    name, data_dir = config.name, _data_dir(config.root)
    base, _, variants = name.partition("/")
    if not re.fullmatch(r"[a-z]\w*(/[\w.+-]+)?(:[\d.]+)?", name):
        raise DataError(f"data.name is {name!r}; it must be a TFDS name such as 'coco/2017'")
    if base == SCENES:
        return {variants: _prepare_scenes(variants, data_dir)}
    return {variant: _open(base, variant, data_dir) for variant in variants.split("+")}


def _data_dir(root: str | None) -> Path:
    folder = root or os.environ.get("TFDS_DATA_DIR")
    if folder is None and os.path.expanduser("~") == "~":
        return Path("tensorflow_datasets")
    return Path(os.path.expanduser(folder or "~/tensorflow_datasets"))


def _prepare_scenes(variant: str, data_dir: Path) -> Any:
    import tensorflow_datasets as tfds

    from harmonic_jax.data.scenes.builder import FashionScenes

    hint = f"delete {data_dir / SCENES}: it is drawn anew"
    with named_damage(data_dir / SCENES, hint):
        builder = FashionScenes(data_dir=data_dir, config=variant or None)
    folder = Path(builder.data_dir)
    if not _is_prepared(folder):
        try:
            make_folder(data_dir)
        except OSError as error:
            raise DataError(
                f"the data set {SCENES} cannot be drawn into {data_dir}: {error.strerror}; name "
                "another folder with data.root (--data.root DIR)"
            ) from error
        Terminal(stderr=True).print(f"drawing the data set {SCENES} into {data_dir}, once")
        # TFDS announces a download on stdout; there is none.
        with contextlib.redirect_stdout(io.StringIO()):
            tfds.disable_progress_bar()
            try:
                builder.download_and_prepare()
            except Exception:
                # Another process may have finished the same work first and own the folder now.
                if not _is_prepared(folder):
                    raise
            finally:
                tfds.enable_progress_bar()
    return open_prepared(folder, hint=hint)


def _open(base: str, variant: str, data_dir: Path) -> Any:
    variant, _, version = variant.partition(":")
    found = {
        path.name: path for path in (data_dir / base / variant).glob("*") if _is_prepared(path)
    }
    # Not what an interrupted `tfds build` left: "incomplete.ABC_1.0.0".
    numbered = [name for name in found if re.fullmatch(r"\d+(\.\d+)*", name)]
    if numbered and not version:
        version = max(numbered, key=lambda name: [*map(int, name.split("."))])
    if version in found:
        return open_prepared(found[version])
    wanted = f"{base}/{variant}".rstrip("/") + f":{version}" * bool(version)
    raise DataError(
        f"TFDS data set {wanted!r} is not prepared under {data_dir} (data.root). Prepare it once, "
        "in any environment that has TensorFlow (training needs none): "
        f"tfds build {wanted} --file_format=array_record --data_dir={shlex.quote(str(data_dir))}"
    )


def _is_prepared(folder: Path) -> bool:
    return (folder / INFO).is_file()


# From a split to its examples


def _choose(part: str, builders: dict[str, Any]) -> list[tuple[Any, str]]:
    """The builders that one part of a split is about, and what TFDS calls it."""
    variants = [variant for variant in builders if variant and part.startswith(f"{variant}_")]
    if variants:
        part = part.removeprefix(f"{variants[0]}_")
    else:
        variants = list(builders)[: 1 if part == "test" else None]
    return [
        (builders[variant], text)
        for variant in variants
        for text in {"trainval": ("train", "validation"), "val": ("validation",)}.get(part, (part,))
    ]


def _check_features(config: DataConfig, features: Any) -> None:
    """Refuses features that are not those of boxes in images, or lack the masks that are wanted."""
    data_set = f"TFDS data set {config.name!r}"
    objects = getattr(features["objects"], "feature", {}) if "objects" in features else {}
    has_names = hasattr(objects, "keys") and {"bbox", "label"} <= set(objects)
    if "image" not in features or not has_names:
        raise DataError(
            f"{data_set} has features {', '.join(features)}; detection needs image "
            "and objects with bbox and label"
        )
    layout = getattr(objects["bbox"], "bbox_format", "unknown")
    layout = str(getattr(layout, "value", layout or "REL_YXYX"))
    if layout != "REL_YXYX" or not hasattr(objects["label"], "names"):
        raise DataError(
            f"{data_set} has {layout} boxes and labels {objects['label']}; they must be REL_YXYX "
            "and ClassLabel"
        )
    if config.masks and _MASKS not in objects:
        raise DataError(
            f"data.masks is True, but the {data_set} has no instance masks; those of "
            "COCO are in its JSON files (data.format=coco); fashion_scenes has them too"
        )


# From examples to annotations. TFDS stores an image and its objects in one record, and no image
# sizes at all, so that the annotations of COCO lie scattered over 19 GB. One pass reads image
# headers, decodes nothing, and is saved for large splits. What it gives are annotations with
# boxes as TFDS has them, ids of -1 and empty names where there are none, sizes of 0 where the
# header is unreadable.


def _identity(builder: Any, split: str) -> str:
    """Names a split's files as they are now."""
    files = sorted(Path(builder.data_dir).iterdir())
    states = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return "\n".join([str(builder.data_dir), split, *states])


def _read_once(examples: Sequence[Any], title: str, identity: str, *, masks: bool) -> Annotations:
    """Reads every example, or the saved result of an earlier pass over the same files."""
    folder = cache_folder()
    if folder is None or len(examples) < SAVED_FROM or masks:  # no large data set has masks
        return _read(examples, title, masks=masks)
    key = hashlib.sha256(f"{_LAYOUT} {identity}".encode()).hexdigest()
    path = folder / "annotations" / f"{key}.npz"
    # A copy that is absent or damaged is made again. A full or read-only disk costs the next start
    # a pass, nothing else.
    with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as file:
        saved = dict(file)
        return Annotations(file_names=tuple(saved.pop("file_names").tolist()), **saved)
    read = _read(examples, title, masks=False)
    arrays = vars(read) | {"file_names": np.array(read.file_names)}
    del arrays["masks"], arrays["original_ids"]
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            np.savez(partial, **arrays)
    return read


def _read(examples: Sequence[Any], title: str, *, masks: bool) -> Annotations:
    number = len(examples)
    console = Terminal(stderr=True, quiet=number < SAVED_FROM)
    every = (examples[i] for i in range(number))
    images: dict[str, list[Any]] = {"image_ids": [], "file_names": [], "sizes": [], "owners": []}
    objects: dict[str, list[Any]] = {field: [] for field in _OBJECT_FIELDS}
    try:
        for place, example in enumerate(track(every, number, f"Reading {title}", console=console)):
            found = example["objects"]
            key, name = example.get("image/id"), example.get("image/filename", b"")
            images["image_ids"].append(int(key) if isinstance(key, int | np.integer) else -1)
            images["file_names"].append(
                name.decode(errors="replace") if isinstance(name, bytes) else str(name)
            )
            images["sizes"].append(header_size(example["image"]) or (0, 0))
            images["owners"] += [place] * len(found["bbox"])
            for field, default in _OBJECT_FIELDS.items():
                objects[field].extend(found.get(field, [default] * len(found["bbox"])))
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; prepare it again") from error
    with named_damage(title, "its objects have fields of other types than TFDS's coco has"):
        return Annotations(
            image_ids=np.array(images["image_ids"], np.int64),
            file_names=tuple(images["file_names"]),
            sizes=np.array(images["sizes"], np.int32).reshape(-1, 2),
            owners=np.array(images["owners"], np.int64),
            boxes=np.array(objects["bbox"], np.float32).reshape(-1, 4),
            labels=np.array(objects["label"], np.int64),
            is_crowd=np.array(objects["is_crowd"], bool),
            is_difficult=np.array(objects["is_difficult"], bool),
            area=np.array(objects["area"], np.float64),
            masks=tuple(objects[_MASKS]) if masks else None,
        )


def _usable(
    read: Annotations, num_classes: int, report: DataReport
) -> tuple[Annotations, np.ndarray]:
    """Drops what has no size or no class, and turns TFDS's boxes, yxyx in shares of the image's
    height and width, into pixels; also returns the examples that are left [m]."""
    names = [name or f"example {i}" for i, name in enumerate(read.file_names)]
    is_readable = read.sizes[:, 0] > 0
    has_class = (read.labels >= 0) & (read.labels < num_classes)
    kept = is_readable[read.owners] & has_class
    unreadable = [names[i] for i in np.flatnonzero(~is_readable)]
    unknown = [names[i] for i in read.owners[is_readable[read.owners] & ~has_class]]
    for reason, found in (Reason.UNREADABLE_HEADER, unreadable), (Reason.UNKNOWN_CLASS, unknown):
        if found:
            report.add(reason, found)
    positions, sizes = np.flatnonzero(is_readable), read.sizes[read.owners[kept]]
    has_ids = (read.image_ids >= 0).all() and len(set(read.image_ids.tolist())) == len(names)
    masks: list[Any] | None = None
    if read.masks is not None:
        texts = (read.masks[row] for row in np.flatnonzero(kept).tolist())
        pairs = zip(texts, sizes.tolist(), strict=True)
        masks = [{"size": size, "counts": text} if text else None for text, size in pairs]
    usable = Annotations(
        image_ids=read.image_ids[positions] if has_ids else positions,
        file_names=tuple(names[i] for i in positions),
        sizes=read.sizes[positions],
        owners=(np.cumsum(is_readable) - 1)[read.owners[kept]],
        boxes=(read.boxes[kept] * np.tile(sizes, 2).astype(np.float64))[:, [1, 0, 3, 2]],
        labels=read.labels[kept],
        is_crowd=read.is_crowd[kept],
        is_difficult=read.is_difficult[kept],
        area=read.area[kept],
        masks=masks,
    )
    return usable, positions
