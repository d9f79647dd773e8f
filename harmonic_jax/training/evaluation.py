# ruff: noqa: E402
"""Detections of a whole data set split, and their metrics."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from harmonic_jax import terminal
from harmonic_jax.config import Config
from harmonic_jax.data.loader import eval_batches
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.sample import num_blank
from harmonic_jax.detectors.parts.selection import non_finite_images
from harmonic_jax.masks import RleTable, join_tables, paste_masks
from harmonic_jax.metrics.coco import coco_metrics, mask_metrics
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from harmonic_jax.metrics.voc import voc_metrics
from harmonic_jax.pretrained import WeightsError
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training.processes import gather, is_primary
from harmonic_jax.training.sharding import eval_batch_size, put_batch
from harmonic_jax.training.state import Variables
from harmonic_jax.training.step import PredictStep
from harmonic_jax.training.watchdog import Watchdog

Tracker = Callable[[Iterable[Batch], int, str], Iterator[Batch]]


class EvaluationStopped(Exception):
    """An evaluation was given up before its end."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """The detections of a batch, in original pixels: one row each; masks where there are any."""

    non_finite: list[int]  # records for which the network says NaN or infinity
    record_index: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: RleTable | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Numbers, and the tables they were computed from."""

    metrics: dict[str, float]
    ground_truth: GroundTruthTable
    detections: DetectionTable
    loaded: DataReport
    """What the loader met, not what the annotations hold."""

    @property
    def num_skipped(self) -> int:
        """Images that could not be read or decoded: nothing is detected in them."""
        return num_blank(self.loaded)

    @property
    def warning(self) -> str:
        """What the numbers are worth where images were skipped; empty where none was."""
        total = len(self.ground_truth.image_ids)
        if not self.num_skipped:
            return ""
        if self.num_skipped == total:
            return (
                f"none of the {total} images could be decoded: these numbers say nothing of the "
                "detector (check-data names the files and what is wrong with them)"
            )
        return (
            f"{self.num_skipped} of {total} images could not be decoded: nothing is detected in "
            "them, and their objects count as missed"
        )


def evaluate(
    predict_step: PredictStep,
    variables: Variables,
    source: DetectionSource,
    config: Config,
    mesh: Mesh,
    *,
    track: Tracker | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    watchdog: Watchdog | None = None,
) -> Evaluation:
    """Runs the detector over every image of a source and scores the detections.

    All processes call it, each loads its share of the images, and every one returns the same
    numbers: predictions come back whole from the device.
    An image that cannot be decoded has no detections, and its objects count as missed; so has one
    for which the network says NaN or infinity, which the report names. Where the
    detector finds masks and the source has them, the metrics hold those of masks too, as mask_AP
    and so on; objects whose mask is unknown are ignored in them.

    Args:
      predict_step: made by `make_predict_step` for this mesh.
      variables: the arrays to evaluate.
      source: images and objects.
      config: batch size, shapes.
      mesh: all devices.
      track: shows how far a loop over batches is; None: on standard output, by process 0.
      should_stop: asked before every batch; True gives the evaluation up. All processes must
        have the same answer.
      watchdog: fed with every batch.

    Raises:
      EvaluationStopped: `should_stop` said so.
      WeightsError: it finds nothing at all, and the network says NaN or infinity for an image.
    """
    watchdog = watchdog or Watchdog(0)
    track = track or functools.partial(terminal.track, enabled=is_primary())
    batches = eval_batches(
        source,
        config.data,
        batch_size=eval_batch_size(config, mesh),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with batches:
        tracked = track(batches, len(batches), "evaluating")
        found = []
        for number, batch in enumerate(tracked, start=1):
            if should_stop():
                raise EvaluationStopped
            with watchdog.first_call(("predict", batch.images.shape)):
                found.append(_detect(predict_step, variables, put_batch(batch, mesh), source))
            watchdog.feed(f"evaluation batch {number} of {len(batches)}")
        loaded = report_of_all(batches.report)
    _report_non_finite(loaded, found, source)
    detections = _collect(found, source)
    truth = GroundTruthTable.from_records(source.records, source.class_names, source.category_ids)
    metrics = coco_metrics(truth, detections)
    if truth.masks is not None and detections.masks is not None:
        is_unknown = truth.masks.areas() == 0
        known = dataclasses.replace(truth, is_difficult=truth.is_difficult | is_unknown)
        metrics |= mask_metrics(known, detections)
    if config.data.format == "voc" or config.data.name.startswith("voc/"):
        metrics |= _voc_summary(truth, detections)
    return Evaluation(metrics, truth, detections, loaded)


def _report_non_finite(report: DataReport, found: list[_Found], source: DetectionSource) -> None:
    """Says for which images the network's output was NaN or infinite."""
    indices = sorted(index for part in found for index in part.non_finite)
    if not indices:
        return
    names = [source.records[index].file_name for index in indices]
    if not any(len(part.scores) for part in found):
        raise WeightsError(
            f"the network says NaN or inf for {len(names)} of {len(source.records)} images of "
            f"{source.name} (the first is {names[0]}), and finds nothing in others: its weights "
            "are broken, or grow too large"
        )
    report.add("non_finite_output", names, outcome="no detections: the network says NaN or inf")


def report_of_all(report: DataReport) -> DataReport:
    """The reports of all processes as one: each has loaded its share of the images."""
    total = DataReport()
    for findings in gather(dataclasses.asdict(report)["findings"]):
        for rule, finding in findings.items():
            total.add(rule, finding["examples"], count=finding["count"], outcome=finding["outcome"])
    return total


def _voc_summary(truth: GroundTruthTable, detections: DetectionTable) -> dict[str, float]:
    """PASCAL VOC's mAP at IoU 0.5: as defined since 2010, and with 2007's eleven points."""
    return {
        "VOC_mAP": voc_metrics(truth, detections, method="area")["mAP"],
        "VOC07_mAP": voc_metrics(truth, detections, method="11point")["mAP"],
    }


def _detect(
    predict_step: PredictStep, variables: Variables, batch: Batch, source: DetectionSource
) -> _Found:
    detections, index = jax.device_get(predict_step(variables, batch))
    non_finite = non_finite_images(detections)
    valid = detections.valid & ~np.isnan(detections.scores)
    detections = dataclasses.replace(detections, valid=valid)
    image, slot = np.nonzero(valid)
    return _Found(
        non_finite=index[non_finite].tolist(),
        record_index=index[image],
        boxes=detections.boxes[image, slot],
        scores=detections.scores[image, slot],
        labels=detections.labels[image, slot],
        masks=_paste(detections, index, source),
    )


def _paste(detections: Detections, index: np.ndarray, source: DetectionSource) -> RleTable | None:
    """The masks of the valid detections in their images, image by image, as run lengths."""
    if detections.masks is None:
        return None
    pasted = []
    for image, slots in enumerate(np.asarray(detections.valid)):
        if slots.any():
            record = source.records[int(index[image])]
            grids, boxes = np.asarray(detections.masks[image]), np.asarray(detections.boxes[image])
            pasted.append(paste_masks(grids[slots], boxes[slots], record.height, record.width))
    return join_tables(pasted)


def _collect(found: list[_Found], source: DetectionSource) -> DetectionTable:
    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in found])

    # Batches group images by shape; results are written in the data set's own order.
    index = column("record_index")
    order = np.argsort(index, kind="stable")
    image_ids = np.array([record.image_id for record in source.records], np.int64)
    masks = [part.masks for part in found if part.masks is not None]
    return DetectionTable(
        image_id=image_ids[index[order]],
        boxes=column("boxes")[order],
        scores=column("scores")[order],
        labels=column("labels")[order],
        masks=join_tables(masks).take(order) if masks else None,
    )


from harmonic_jax.training.classes import (
    MatchedPredictions as MatchedPredictions,
)
from harmonic_jax.training.classes import (
    classes_found as classes_found,
)
from harmonic_jax.training.classes import (
    match_classes as match_classes,
)
from harmonic_jax.training.report import (
    write_report as write_report,
)
