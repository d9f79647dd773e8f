"""Detections of a whole data set split, and their metrics."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from harmonic_jax.config import Config
from harmonic_jax.data.loader import eval_batches
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.report import DataReport
from harmonic_jax.metrics.coco import coco_metrics
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from harmonic_jax.metrics.voc import voc_metrics
from harmonic_jax.structures import Batch
from harmonic_jax.training import progress
from harmonic_jax.training.sharding import check_divides, put_batch
from harmonic_jax.training.state import Variables
from harmonic_jax.training.step import PredictStep

# Record index, box in original pixels, score and label of the detections of a batch.
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Tracker = Callable[[Iterable[Batch], int, str], Iterator[Batch]]


class EvaluationStopped(Exception):
    """An evaluation was given up before its end."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Numbers, and the tables they were computed from."""

    metrics: dict[str, float]
    ground_truth: GroundTruthTable
    detections: DetectionTable
    skipped: DataReport  # what the loader met, not what the annotations hold


def evaluate(
    predict_step: PredictStep,
    variables: Variables,
    source: DetectionSource,
    config: Config,
    mesh: Mesh,
    *,
    track: Tracker = progress.track,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Runs the detector over every image of a source and scores the detections.

    Every process returns the same numbers: predictions come back whole from the device.
    An image that cannot be decoded has no detections, and its objects count as missed.

    Args:
      predict_step: made by `make_predict_step` for this mesh.
      variables: the arrays to evaluate.
      source: images and objects.
      config: batch size, shapes.
      mesh: all devices.
      track: shows how far a loop over batches is.
      should_stop: asked before every batch; True gives the evaluation up.

    Raises:
      EvaluationStopped: `should_stop` said so.
    """
    batch_size = config.train.eval_batch_size or config.train.batch_size
    check_divides(mesh, "train.eval_batch_size", batch_size)
    batches = eval_batches(
        source,
        config.data,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with batches:
        tracked = track(batches, len(batches), "evaluating")
        columns = []
        for batch in tracked:
            if should_stop():
                raise EvaluationStopped
            columns.append(_detect(predict_step, variables, put_batch(batch, mesh)))
        skipped = batches.report
    detections = _collect(columns, source)
    truth = GroundTruthTable.from_records(source.records, source.class_names, source.category_ids)
    metrics = coco_metrics(truth, detections)
    if config.data.format == "voc" or config.data.name.startswith("voc/"):
        metrics |= _voc_summary(truth, detections)
    return Evaluation(metrics, truth, detections, skipped)


def _voc_summary(truth: GroundTruthTable, detections: DetectionTable) -> dict[str, float]:
    """PASCAL VOC's mAP at IoU 0.5: as defined since 2010, and with 2007's eleven points."""
    return {
        "VOC_mAP": voc_metrics(truth, detections, method="area")["mAP"],
        "VOC07_mAP": voc_metrics(truth, detections, method="11point")["mAP"],
    }


def _detect(predict_step: PredictStep, variables: Variables, batch: Batch) -> Columns:
    detections, index = jax.device_get(predict_step(variables, batch))
    image, slot = np.nonzero(detections.valid)
    return (
        index[image],
        detections.boxes[image, slot],
        detections.scores[image, slot],
        detections.labels[image, slot],
    )


def _collect(columns: list[Columns], source: DetectionSource) -> DetectionTable:
    index, boxes, scores, labels = (np.concatenate(c) for c in zip(*columns, strict=True))
    # Batches group images by shape; results are written in the data set's own order.
    order = np.argsort(index, kind="stable")
    image_ids = np.array([record.image_id for record in source.records], np.int64)
    return DetectionTable(image_ids[index[order]], boxes[order], scores[order], labels[order])
