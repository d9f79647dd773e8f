"""Evaluation of detections: NumPy in, numbers out.

`coco_metrics` and `mask_metrics` are COCO's numbers of two tables, `coco_metrics_of_files` those of
two files, `voc_metrics` PASCAL VOC's; `consistency_report` tells how far scores and boxes disagree.
They need NumPy alone, but for files (msgspec) and masks (pycocotools).
"""

import importlib
from typing import TYPE_CHECKING, Any

from harmonic_jax.metrics.coco import coco_metrics, format_table, mask_metrics
from harmonic_jax.metrics.consistency.report import consistency_report
from harmonic_jax.metrics.params import CocoParams
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable, concatenate_detections
from harmonic_jax.metrics.voc import voc_metrics

if TYPE_CHECKING:
    from harmonic_jax.metrics.files import (
        coco_metrics_of_files,
        load_coco_annotations,
        load_coco_results,
        save_coco_annotations,
        save_coco_results,
    )

__all__ = [
    "CocoParams",
    "DetectionTable",
    "GroundTruthTable",
    "coco_metrics",
    "coco_metrics_of_files",
    "concatenate_detections",
    "consistency_report",
    "format_table",
    "load_coco_annotations",
    "load_coco_results",
    "mask_metrics",
    "save_coco_annotations",
    "save_coco_results",
    "voc_metrics",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("harmonic_jax.metrics.files"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
