"""From a configuration, or a short name, to a source of records."""

import os
from pathlib import Path

from harmonic_jax.data.coco import coco_splits, read_coco
from harmonic_jax.data.records import DataError, DetectionSource
from harmonic_jax.data.settings import DataConfig
from harmonic_jax.data.tfds import read_tfds, tfds_splits
from harmonic_jax.data.voc import read_voc, voc_splits
from harmonic_jax.data.yolo import read_yolo, yolo_splits


def open_source(config: DataConfig, split: str) -> DetectionSource:
    """Opens a split to train on or to evaluate; docs/data.md lists their names by format.

    Raises:
      DataError: if the data set or the split is absent, if nothing in it is usable, or if masks
        are wanted and the data set has none.
    """
    source = read_source(config, split)
    if not source.records:
        dropped = source.report.findings
        told = f"\n{source.report.format()}" if dropped else "its list of images is empty"
        raise DataError(f"{source.name} has no usable image: {told}")
    return source


def read_source(config: DataConfig, split: str) -> DetectionSource:
    """Like `open_source`, but the source may have no usable record: its report says why."""
    match config.format:
        case "coco":
            return read_coco(_folder(config), split, config)
        case "voc":
            if config.masks:
                raise DataError(
                    "data.masks is True, but VOC XML has no instance masks; COCO folders "
                    "(data.format=coco) and the TFDS name fashion_scenes have them"
                )
            return read_voc(_folder(config), split, config)
        case "yolo":
            return read_yolo(_folder(config), split, config)
        case "tfds":
            return read_tfds(config, split)


def list_splits(config: DataConfig) -> tuple[str, ...]:
    """The names of all splits of a data set."""
    if config.eval_share is not None:
        return config.train_split, config.eval_split
    match config.format:
        case "coco":
            return coco_splits(_folder(config))
        case "voc":
            return voc_splits(_folder(config))
        case "yolo":
            return yolo_splits(_folder(config))
        case "tfds":
            return tfds_splits(config)


def parse_spec(spec: str) -> tuple[DataConfig, str | None]:
    """Reads `FORMAT:WHERE[:SPLIT]`, as check-data takes it; a DataError where it is none.

    That is `coco:DIR`, `voc:DIR`, `yolo:DIR` or `tfds:NAME`; without `:SPLIT` the split is None,
    for all of them.

    Example:
      >>> config, split = parse_spec("voc:photos/bccd:test")
      >>> config.format, config.root, split
      ('voc', 'photos/bccd', 'test')
    """
    form, _, rest = spec.partition(":")
    if (
        form != "tfds" and Path(os.path.expanduser(rest)).is_dir()
    ):  # it may have a colon in its name
        where, split = rest, ""
    else:
        colon = rest.partition("[")[0].rfind(":")  # not those of a slice, train[:9]
        where, split = (rest[:colon], rest[colon + 1 :]) if colon >= 0 else (rest, "")
    match form if where else None:
        case "tfds":
            return DataConfig(format="tfds", name=where), split or None
        case "coco" | "voc" | "yolo" as known:
            return DataConfig(format=known, root=where), split or None
    raise DataError(f"{spec!r} must be coco:DIR, voc:DIR, yolo:DIR or tfds:NAME, maybe with :SPLIT")


def _folder(config: DataConfig) -> Path:
    folder = Path(os.path.expanduser(str(config.root)))  # Path's own raises where there is no home
    if not folder.is_dir() and not (config.format == "yolo" and folder.is_file()):
        raise DataError(f"data.root is {config.root!r}; it must be an existing folder")
    return folder
