"""TFDS data sets by name, prepared before and read from their files without TensorFlow.

TFDS is imported inside the functions: it takes a second, and folders do without it.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harmonic_jax.data.folders import ImageEntry, ObjectEntry, annotations_of, header_size
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
_LAYOUT = "5"  # of a saved pass: change it with what is in one
_MASKS = "segmentation"  # of an object: compressed run lengths as text
# What an object may have, in the order of `ObjectEntry`, and its value where there is none.
_DEFAULTS = {"is_crowd": False, "is_difficult": False, "area": np.nan, _MASKS: b""}


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

    Masks are compressed run lengths in a text `segmentation`. Image ids are the data set's own, or
    positions where it has none.

    Args:
      split: what TFDS takes ("train", "train+validation", "train[:10%]"), and "trainval" and
        "val"; of several years of VOC, "2007_trainval+2012_trainval", where a split without a
        year is that of all, but for "test": the test set of 2007, the only one with objects.
    """
    builders = open_builders(config)
    chosen = [choice for part in split.split("+") for choice in _choose(part.strip(), builders)]
    first = chosen[0][0]
    with named_damage(f"{first.data_dir}/{FEATURES}"):
        _check_features(config, first.info.features)
    class_names = label_names(first)
    examples = PreparedExamples(chosen)
    name, report = f"{config.name}:{split}", DataReport()
    is_large = len(examples) >= SAVED_FROM and not config.masks  # no large data set has masks
    path = _saved_pass(chosen) if is_large else None
    saved = _load(path, report) if path else None
    raw, positions = saved or _read(examples, name, len(class_names), report, masks=config.masks)
    if path and not saved:
        _save(path, raw, positions, report)
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
    """Opens the prepared data of a name, or raises a DataError with the command that prepares them.

    Args:
      config: `name` is a TFDS name such as "coco/2017" or "coco/2017:1.1.0"; "voc/2007+2012" is
        two. `root` is the TFDS data directory; None: $TFDS_DATA_DIR, or else ~/tensorflow_datasets
        (in the current folder for a user without a home).

    Returns:
      TFDS builders by variant ("2007", "2012"; "" where the name has none).
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
        make_folder(data_dir)
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
# headers, decodes nothing, and is saved for large splits.


def _saved_pass(chosen: Sequence[tuple[Any, str]]) -> Path | None:
    """Where the pass over the files of these splits, as they are now, is kept."""
    folder, states = cache_folder(), [_LAYOUT]
    for builder, split in chosen:
        states += [str(builder.data_dir), split]
        for path in sorted(Path(builder.data_dir).iterdir()):
            states.append(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}")
    key = hashlib.sha256("\n".join(states).encode()).hexdigest()
    return folder / "annotations" / f"{key}.npz" if folder else None


def _read(
    examples: Sequence[Any], title: str, num_classes: int, report: DataReport, *, masks: bool
) -> tuple[Annotations, np.ndarray]:
    """What the examples say, without those of no size; also returns the places of the others [m].

    TFDS's boxes are yxyx in shares of the image's height and width.
    """
    images: list[ImageEntry] = []
    objects: list[ObjectEntry] = []
    ids: list[int] = []
    number = len(examples)
    console = Terminal(stderr=True, quiet=number < SAVED_FROM)
    every = (examples[i] for i in range(number))
    hint = "its objects have fields of other types than TFDS's coco has"
    with named_damage(title, hint):
        for place, example in enumerate(track(every, number, f"Reading {title}", console=console)):
            key, name = example.get("image/id"), example.get("image/filename", b"")
            ids.append(int(key) if isinstance(key, int | np.integer) else -1)
            name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
            name = name or f"example {place}"
            size = header_size(example["image"])
            if size is None:
                report.add(Reason.UNREADABLE_HEADER, [name])
                continue
            found = example["objects"]
            labels = np.asarray(found["label"], np.int64).tolist()
            shares = np.reshape(np.asarray(found["bbox"], np.float64), (-1, 4))
            boxes = (shares * (size + size))[:, [1, 0, 3, 2]].tolist()
            rest = (found.get(field, [value] * len(boxes)) for field, value in _DEFAULTS.items())
            for box, label, crowd, difficult, area, text in zip(boxes, labels, *rest, strict=True):
                if 0 <= label < num_classes:
                    mask = {"size": list(size), "counts": text} if text else None
                    entry = ObjectEntry(len(images), box, label, crowd, difficult, area, mask)
                    objects.append(entry)
                else:
                    report.add(Reason.UNKNOWN_CLASS, [name])
            images.append(ImageEntry(ids[-1], name, size, place))
        positions = np.array([image.place for image in images], np.int64)
        if min(ids, default=0) < 0 or len(set(ids)) < len(ids):
            pairs = zip(images, positions.tolist(), strict=True)
            images = [image._replace(id=place) for image, place in pairs]
        return annotations_of(images, objects, masks=masks), positions


def _save(path: Path, raw: Annotations, positions: np.ndarray, report: DataReport) -> None:
    arrays: dict[str, Any] = vars(raw) | {"file_names": np.array(raw.file_names)}
    del arrays["masks"], arrays["original_ids"]
    findings = {rule: (found.count, found.examples) for rule, found in report.findings.items()}
    with contextlib.suppress(OSError):  # a full disk costs the next start a pass, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            np.savez(partial, positions=positions, report=json.dumps(findings), **arrays)


def _load(path: Path, report: DataReport) -> tuple[Annotations, np.ndarray] | None:
    with contextlib.suppress(Exception), np.load(path, allow_pickle=False) as file:
        saved = dict(file)
        findings = json.loads(str(saved.pop("report")))
        positions, names = saved.pop("positions"), tuple(saved.pop("file_names").tolist())
        raw = Annotations(file_names=names, **saved)
        for rule, (count, examples) in findings.items():
            report.add(Reason[rule.upper()], examples, count=count)
        return raw, positions
    return None  # absent or damaged: it is only a copy, and is made again
