"""A detector's classes and a data set's, matched by name."""

import dataclasses
from collections.abc import Collection, Sequence

import jax
import numpy as np

from harmonic_jax.config import ConfigError
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training.state import Variables
from harmonic_jax.training.step import PredictStep


def match_classes(
    known: Sequence[str], wanted: Sequence[str], *, found: Collection[str] | None = None
) -> np.ndarray:
    """For each class of a detector its label in a data set, -1 where that does not have it.

    Args:
      known: the detector's classes; of equal names the first counts.
      wanted: the data set's classes.
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
            f"the detector does not know the classes {listing(missing)}; its classes are "
            f"{listing(known)}"
        )
    labels = np.full(len(known), -1, np.int32)
    for label, name in enumerate(wanted):
        if name in known:
            labels[list(known).index(name)] = label
    return labels


def classes_found(source: DetectionSource) -> list[str]:
    """The classes of which a data set has objects, in its order."""
    labels = {label for record in source.records for label in record.labels.tolist()}
    return [name for label, name in enumerate(source.class_names) if label in labels]


def listing(names: Sequence[str], most: int = 20) -> str:
    """Names as they are written in a message; of many the first.

    >>> listing(["cat", "dog", "N/A"], most=2)
    "'cat', 'dog' and 1 more"
    """
    shown = ", ".join(map(repr, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


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
        labels = self._labels[found.labels]
        self.num_dropped += int((found.valid & (labels < 0)).sum())
        valid = found.valid & (labels >= 0)
        return dataclasses.replace(found, labels=np.where(valid, labels, 0), valid=valid), index
