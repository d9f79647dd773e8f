"""What the COCO evaluation can be told, and which rows that leaves."""

import dataclasses
import re
from collections.abc import Collection, Sequence
from typing import Annotated, Any

import numpy as np

from harmonic_jax.checks import check_fields, require, shown
from harmonic_jax.metrics.matching import AREA_RANGES, IOU_THRESHOLDS
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable, image_places, take_rows


@dataclasses.dataclass(frozen=True)
class CocoParams:
    """Settings of `coco_metrics`, as pycocotools' `Params`; by default COCO's.

    Raises:
      ConfigError: A value is not legal; the message names the field.
    """

    iou_thresholds: Annotated[tuple[float, ...], "(0, 1]"] = tuple(IOU_THRESHOLDS.tolist())
    """Of AP and AR, rising; .5 gives AP50 too, .75 AP75."""
    area_ranges: Annotated[tuple[tuple[str, float, float], ...], "[0, 1e20]"] = tuple(
        (name, *ends) for name, ends in AREA_RANGES.items() if name != "all"
    )
    """NAME, least and largest area in square pixels: of AP_NAME and AR_NAME. One called all stands
    for the range of the other numbers, 0 to 1e10."""
    max_detections: Annotated[tuple[int, ...], "[1, 1000000]"] = (1, 10, 100)
    """Of each image and class, rising: AR_NUMBER; the last is that of all other numbers. Of LVIS's
    annotations of each image, and these three stand for 300."""
    classes: frozenset[str] | None = None
    """Names of those that are evaluated; None: all."""
    image_ids: frozenset[int | str] | None = None
    """The data set's own ids of those that are evaluated; None: all."""

    def __post_init__(self) -> None:
        check_fields(self, "params")
        for field in ("iou_thresholds", "max_detections"):
            values = getattr(self, field)
            is_rising = values == tuple(sorted({*values})) != ()
            require(is_rising, f"params.{field}", values, "rising, and at least one")
        names = {name for name, *_ in self.area_ranges}
        are_legal = len(names) == len(self.area_ranges) < 20 and all(
            re.fullmatch("(?![rcf]$)[a-zA-Z][a-zA-Z0-9_-]*", name) and low <= high
            for name, low, high in self.area_ranges
        )
        legal = "at most 19: a name of its own (as mid-1; not r, c, f), least area, largest area"
        require(are_legal, "params.area_ranges", self.area_ranges, legal)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """All area ranges by name, "all" first."""
        named = {name: (low, high) for name, low, high in self.area_ranges}
        return {"all": AREA_RANGES["all"]} | named

    def limits(self, truth: GroundTruthTable) -> tuple[int, ...]:
        """`max_detections`, or where they are the default that of a federated ground truth."""
        is_default = self.max_detections == COCO_PARAMS.max_detections
        federated = truth.federation is not None and is_default
        return (truth.max_detections,) if federated else self.max_detections

    def select(
        self, truth: GroundTruthTable, found: DetectionTable
    ) -> tuple[GroundTruthTable, DetectionTable]:
        """The images and the rows that are evaluated; classes keep their labels. Of a federated
        ground truth detections of other classes stay, and are not judged.

        Raises:
          ConfigError: a class or an image is not in the ground truth.
          ValueError: a detection of an image or a class that the ground truth does not have.
        """
        if self.classes is None and self.image_ids is None:
            return truth, found
        image_places(truth, found)  # what is wrong must not vanish among what is left out
        own_ids = [truth.original_ids.get(key, key) for key in truth.image_ids.tolist()]
        wanted: Collection[int | str] | None = self.image_ids
        if wanted is not None:  # a command cannot say whether 7 is a number or a text
            known, texts = set(own_ids), {str(key): key for key in own_ids}
            wanted = {key if key in known else texts.get(str(key), key) for key in wanted}
        images = _chosen("image_ids", wanted, own_ids)
        classes = _chosen("classes", self.classes, truth.class_names)
        ids = truth.image_ids[images]
        objects, boxes = (np.isin(t.image_id, ids) & classes[t.labels] for t in (truth, found))
        sizes = None if truth.image_sizes is None else truth.image_sizes[images]
        changes: dict[str, Any] = {"image_ids": ids, "image_sizes": sizes}
        if truth.federation is not None:  # a limit of all classes: the others stay, not judged
            boxes = np.isin(found.image_id, ids)
            absent = truth.federation.absent
            absent = absent[classes[absent[:, 1]]]
            changes["federation"] = dataclasses.replace(truth.federation, absent=absent)
        return dataclasses.replace(take_rows(truth, objects), **changes), take_rows(found, boxes)


COCO_PARAMS = CocoParams()


def _chosen(
    field: str, wanted: Collection[int | str] | None, known: Sequence[int | str]
) -> np.ndarray:
    """Which of the known names are wanted, bool [n]; refuses others, and none."""
    names = set(known if wanted is None else wanted)
    unknown = sorted(names - set(known), key=str)
    is_legal = wanted is None or (bool(names) and not unknown)
    require(is_legal, f"params.{field}", unknown, f"some of {shown(list(known))}")
    return np.array([name in names for name in known], bool)
