"""Detections of a whole data set split, and their metrics."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from harmonic_jax import terminal
from harmonic_jax.config import Config, ConfigError
from harmonic_jax.data.folders import shared_images
from harmonic_jax.data.loader import eval_batches
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.sample import num_blank
from harmonic_jax.detectors.parts.selection import non_finite_images
from harmonic_jax.masks import RleTable, join_tables, paste_masks
from harmonic_jax.metrics.coco import coco_metrics, mask_metrics
from harmonic_jax.metrics.params import COCO_PARAMS, CocoParams
from harmonic_jax.metrics.tables import (
    DetectionTable,
    GroundTruthTable,
    concatenate_detections,
    take_rows,
)
from harmonic_jax.metrics.voc import voc_metrics
from harmonic_jax.pretrained import WeightsError
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.processes import gather, is_primary
from harmonic_jax.training.sharding import eval_batch_size, put_batch
from harmonic_jax.training.state import Variables
from harmonic_jax.training.step import PredictStep
from harmonic_jax.training.watchdog import Watchdog, process_watchdog

Tracker = Callable[[Iterable[Batch], int, str], Iterator[Batch]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Numbers, and the tables they were computed from."""

    metrics: dict[str, Any]
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
        skipped, total = self.num_skipped, len(self.ground_truth.image_ids)
        if skipped and skipped == total:
            return (
                f"none of the {total} images could be decoded: these numbers say nothing of the "
                "detector (check-data names the files and what is wrong with them)"
            )
        words = "could not be decoded: nothing is detected in them, and their objects are missed"
        return f"{skipped} of {total} images {words}" if skipped else ""


def detect_all(
    predict_step: PredictStep,
    variables: Variables,
    source: DetectionSource,
    config: Config,
    mesh: Mesh,
    *,
    loaded: DataReport,
    track: Tracker | None = None,
    watchdog: Watchdog | None = None,
) -> Iterator[tuple[Detections, np.ndarray]]:
    """Runs the detector over every image of a source, batch by batch, in any order.

    All processes call it, each loads its share of the images, and every one gets all detections:
    they come back whole from the device. An image that cannot be decoded has none.

    Args:
      predict_step: made by `make_predict_step` for this mesh.
      loaded: takes what the loaders of all processes met, at the end.
      track: shows how far a loop over batches is; None: on standard output, by process 0. It may
        give up by an exception of its own, of all processes at the same batch.

    Yields:
      Detections `[b d]` on the host, in pixels of the original images, and the records of the
      images, int32 `[b]`; rows that only fill a batch have no valid detection.
    """
    watchdog = watchdog or process_watchdog(0)
    console = Terminal(quiet=not is_primary(), lossy=True)
    track = track or functools.partial(terminal.track, console=console)
    batches = eval_batches(
        source,
        config.data,
        batch_size=eval_batch_size(config, mesh),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with batches:
        for number, batch in enumerate(track(batches, len(batches), "evaluating"), start=1):
            with watchdog.first_call(("evaluating", batch.images.shape)):
                detections = jax.device_get(predict_step(variables, put_batch(batch, mesh)))
            watchdog.feed(f"evaluating: batch {number} of {len(batches)}")
            yield detections
        loaded.findings.update(report_of_all(batches.report).findings)


def evaluate(
    predict_step: PredictStep,
    variables: Variables,
    source: DetectionSource,
    config: Config,
    mesh: Mesh,
    *,
    track: Tracker | None = None,
    watchdog: Watchdog | None = None,
    params: CocoParams = COCO_PARAMS,
) -> Evaluation:
    """Runs the detector over every image of a source (`detect_all`) and scores the detections.

    All processes call it, and every one returns the same numbers. The objects of an image that
    cannot be decoded count as missed; so do those of one for which the network says NaN or
    infinity, which the report names. Where the detector finds masks and the source has them, the
    metrics hold those of masks too, as mask_AP and so on; objects whose mask is unknown are
    ignored in them. The images and classes of `params` are those of VOC's metrics too.

    Raises:
      ConfigError: a class or an image of `params` is not in the data.
      WeightsError: it finds nothing at all, and the network says NaN or infinity for an image.
    """
    names, ids = source.class_names, source.category_ids
    truth = GroundTruthTable.from_records(source.records, names, ids, source.federation)
    params.select(truth, concatenate_detections([]))  # refuses what is not there
    loaded = DataReport()
    batches = detect_all(
        predict_step, variables, source, config, mesh,
        loaded=loaded, track=track, watchdog=watchdog,
    )  # fmt: skip
    tables: list[DetectionTable] = []
    records = [np.zeros(0, np.int32)]  # of each detection
    non_finite: list[int] = []
    for found, index in batches:
        non_finite += index[non_finite_images(found)].tolist()
        boxes, scores, labels = map(np.asarray, (found.boxes, found.scores, found.labels))
        valid = np.asarray(found.valid) & ~np.isnan(scores)
        masks = _paste(found.masks, boxes, valid, index, source)
        # Empty slots of a batch, of whichever image, detect nothing.
        ids = truth.image_ids[np.clip(index, 0, len(truth.image_ids) - 1)]
        tables.append(DetectionTable.from_padded(ids, boxes, scores, labels, valid, masks))
        records.append(np.repeat(index, valid.sum(axis=1)))
    # Batches group images by shape; results are written in the data set's own order.
    order = np.argsort(np.concatenate(records), kind="stable")
    detections = take_rows(concatenate_detections(tables), order)
    _report_non_finite(loaded, sorted(non_finite), len(detections.scores), source)
    metrics = coco_metrics(truth, detections, params=params)
    if truth.masks is not None and detections.masks is not None:
        metrics |= mask_metrics(without_unknown_masks(truth), detections, params=params)
    if config.data.format == "voc" or config.data.name.startswith("voc/"):
        # At IoU 0.5: as defined since 2010, and with 2007's eleven points.
        chosen = params.select(truth, detections)
        metrics["VOC_mAP"] = voc_metrics(*chosen, method="area")["mAP"]
        metrics["VOC07_mAP"] = voc_metrics(*chosen, method="11point")["mAP"]
    return Evaluation(metrics, truth, detections, loaded)


def without_unknown_masks(truth: GroundTruthTable) -> GroundTruthTable:
    """The same, with objects ignored whose mask is empty, as it is of one that is not known."""
    if truth.masks is None:
        return truth
    return dataclasses.replace(truth, is_difficult=truth.is_difficult | (truth.masks.areas() == 0))


def report_of_all(report: DataReport) -> DataReport:
    """The reports of all processes as one: each has loaded its share of the images."""
    total = DataReport()
    for findings in gather(dataclasses.asdict(report)["findings"]):
        for rule, finding in findings.items():
            total.add(rule, finding["examples"], count=finding["count"], outcome=finding["outcome"])
    return total


def _report_non_finite(
    report: DataReport, records: list[int], num_detections: int, source: DetectionSource
) -> None:
    """Says for which images the network's output was NaN or infinite."""
    if not records:
        return
    names = [source.records[index].file_name for index in records]
    if not num_detections:
        raise WeightsError(
            f"the network says NaN or inf for {len(names)} of {len(source.records)} images of "
            f"{source.name} (the first is {names[0]}), and finds nothing in others: its weights "
            "are broken, or grow too large"
        )
    report.add("non_finite_output", names, outcome="no detections: the network says NaN or inf")


def _paste(
    masks: Any, boxes: np.ndarray, valid: np.ndarray, index: np.ndarray, source: DetectionSource
) -> RleTable | None:
    """The masks of the valid detections in their images, image by image, as run lengths."""
    if masks is None:
        return None
    grids, pasted = np.asarray(masks), []
    for image in np.flatnonzero(valid.any(axis=1)):
        rows, record = valid[image], source.records[int(index[image])]
        size = (record.height, record.width)
        pasted.append(paste_masks(grids[image][rows], boxes[image][rows], *size))
    return join_tables(pasted)


# A detector's classes and a data set's, matched by name.


class MatchedPredictions:
    """A predict step with a data set's labels; detections of other classes are dropped.

    They are dropped after the detector's own cap on detections, as torchvision's users would.
    `num_dropped` counts them, `other_classes` the classes that are dropped.
    """

    def __init__(self, predict_step: PredictStep, labels: np.ndarray) -> None:
        self._predict_step = predict_step
        self._labels = labels
        self.other_classes = int((labels < 0).sum())
        self.num_dropped = 0

    def __call__(self, variables: Variables, batch: Batch) -> tuple[Detections, jax.Array]:
        on_device, index = self._predict_step(variables, batch)
        found = jax.device_get(on_device)
        matched = with_labels(found, self._labels)
        self.num_dropped += int((found.valid & ~np.asarray(matched.valid)).sum())
        return matched, index


def with_labels(found: Any, labels: np.ndarray) -> Any:
    """Detections on the host with the labels of `match_classes`; those of -1 are not valid."""
    matched = labels[found.labels]
    valid = found.valid & (matched >= 0)
    return dataclasses.replace(found, labels=np.where(valid, matched, 0), valid=valid)


def match_classes(
    known: Sequence[str], wanted: Sequence[str], *, found: Collection[str] | None = None
) -> np.ndarray:
    """For each class of a detector its label in a data set, -1 where that does not have it.

    Args:
      known: the detector's classes; of equal names the first counts.
      found: those of which the data set has objects; None: all.

    Raises:
      ConfigError: the detector lacks a class of which there are objects. Without any, its number
        is none, whatever is detected.

    Example:
      >>> match_classes(["background", "cat", "dog", "N/A", "N/A"], ["dog", "cat"]).tolist()
      [-1, 1, 0, -1, -1]
    """
    if list(known) == list(wanted):
        return np.arange(len(known), dtype=np.int32)
    missing = [name for name in wanted if name not in known and (found is None or name in found)]
    if missing:
        raise ConfigError(
            f"the detector does not know the classes {listing(missing)} of the data to evaluate "
            f"on; its classes, in any order, are {listing(known)}"
        )
    labels = np.full(len(known), -1, np.int32)
    for label, name in enumerate(wanted):
        if name in known:
            labels[list(known).index(name)] = label
    return labels


def match_sources(
    train_source: DetectionSource, eval_source: DetectionSource
) -> tuple[np.ndarray, list[str]]:
    """For each class of the training data its label in the evaluation data, by name; -1: none.

    Returns:
      The labels, and a line on each thing that makes the numbers worth less: classes that are not
      evaluated, or not trained on, and images that are in both.

    Raises:
      ConfigError: names the classes of which there are objects, and that the training data lack.
    """
    known, wanted = train_source.class_names, eval_source.class_names
    found = classes_found(eval_source)
    labels = match_classes(known, wanted, found=found)
    notes = []
    if not found:
        notes.append(
            f"{eval_source.name} has no objects to find: no step is better than another, and best/ "
            "holds the newest one that was evaluated"
        )
    if others := [name for name in known if name not in wanted]:
        notes.append(
            f"{eval_source.name} does not have the classes {listing(others)}: not evaluated"
        )
    trained = classes_found(train_source)
    if untrained := [name for name in found if name not in trained]:
        notes.append(f"{train_source.name} has no object of {listing(untrained)} to learn from")
    if shared := shared_images(train_source, eval_source):
        notes.append(
            f"{len(shared)} of {len(eval_source.records)} images of {eval_source.name} are also "
            f"trained on ({listing(shared, most=3)}): they say little about new ones"
        )
    return labels, notes


def classes_found(source: DetectionSource) -> list[str]:
    """The classes of which a data set has objects, in its order."""
    labels = {label for record in source.records for label in record.labels.tolist()}
    return [name for label, name in enumerate(source.class_names) if label in labels]


def listing(names: Sequence[str], most: int = 20) -> str:
    """Names as they are written in a message; of many the first, and `none` of none.

    >>> listing(["cat", "dog", "N/A"], most=2)
    "'cat', 'dog' and 1 more"
    """
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "none"
