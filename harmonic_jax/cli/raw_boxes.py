"""Boxes as a detector has them before its NMS."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from harmonic_jax import terminal
from harmonic_jax.config import Config
from harmonic_jax.data.loader import eval_batches
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.metrics.tables import DetectionTable, concatenate_detections
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training.processes import is_primary
from harmonic_jax.training.saved_run import SavedRun
from harmonic_jax.training.sharding import eval_batch_size, put_batch
from harmonic_jax.training.state import Variables, build_detector
from harmonic_jax.training.step import PredictStep, make_predict_step
from harmonic_jax.training.watchdog import Watchdog

MOST_RAW_BOXES = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class RawBoxes:
    """Boxes before NMS.

    Attributes:
      boxes: at most `MOST_RAW_BOXES` an image, the best.
      num_full: images that have so many: they may have had more.
    """

    boxes: DetectionTable
    num_full: int


def make_raw_step(run: SavedRun, mesh: Mesh) -> PredictStep:
    """A predict step of the same detector without suppression: NMS at IoU 1 removes nothing.

    What comes before NMS stays as the config has it: the score threshold, and the best
    candidates of each level or class. Masks are not computed.
    """
    model: Any = run.config.model  # whichever: all detectors name these fields alike
    settings = dataclasses.replace(
        model.postprocess, nms="class", nms_iou=1.0, max_detections=MOST_RAW_BOXES
    )
    config = dataclasses.replace(run.config, model=dataclasses.replace(model, postprocess=settings))
    step = make_predict_step(build_detector(config, len(run.class_names)), mesh)

    def without_masks(variables: Variables, batch: Batch) -> tuple[Detections, jax.Array]:
        found, index = step(variables, batch)
        return dataclasses.replace(found, masks=None), index

    return jax.jit(without_masks)


def detect_raw(
    raw_step: PredictStep,
    variables: Variables,
    source: DetectionSource,
    config: Config,
    mesh: Mesh,
    *,
    watchdog: Watchdog | None = None,
) -> RawBoxes:
    """Runs a raw step over every image of a source; all processes call it.

    Args:
      raw_step: from `make_raw_step`, perhaps with a data set's labels.
      variables: the arrays.
      source: the images.
      config: batch size, shapes.
      mesh: all devices.
      watchdog: fed with every batch.
    """
    watchdog = watchdog or Watchdog(0)
    batches = eval_batches(
        source,
        config.data,
        batch_size=eval_batch_size(config, mesh),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    track = functools.partial(terminal.track, enabled=is_primary())
    image_ids = np.array([record.image_id for record in source.records], np.int64)
    tables, num_full = [], 0
    with batches:
        for number, batch in enumerate(track(batches, len(batches), "before NMS"), start=1):
            with watchdog.first_call(("raw", batch.images.shape)):
                found, index = jax.device_get(raw_step(variables, put_batch(batch, mesh)))
            num_full += int(np.asarray(found.valid).all(axis=1).sum())
            rows = np.clip(index, 0, len(image_ids) - 1)  # of empty slots, which detect nothing
            tables.append(
                DetectionTable.from_padded(
                    image_ids[rows], found.boxes, found.scores, found.labels, found.valid
                )
            )
            watchdog.feed(f"batch {number} of {len(batches)} before NMS")
    return RawBoxes(concatenate_detections(tables), num_full)
