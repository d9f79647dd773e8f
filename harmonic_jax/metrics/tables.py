"""Ground truth and detections of a whole data set, as columns: one row an object, not one an image.

Every metric reads these two tables, whatever the numbers came from: data records, network output
or COCO files. Boxes are float64 xyxy in pixels of the original image, with x2 = x1 + width.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from harmonic_jax.coco_format.federated import Federation
from harmonic_jax.masks.rle import RleTable, join_tables

# Of each column with a row for each box its type and the shape of a row.
_COLUMNS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "image_id": (np.int64, ()),
    "boxes": (np.float64, (4,)),
    "scores": (np.float64, ()),
    "labels": (np.int32, ()),
    "is_crowd": (np.bool_, ()),
    "is_difficult": (np.bool_, ()),
    "area": (np.float64, ()),
}
_OF_OBJECTS = ("boxes", "labels", "is_crowd", "is_difficult", "area")
_OF_DETECTIONS = ("image_id", "boxes", "scores", "labels", "sizes")
_LARGEST = 1e100  # the product of two is far from infinite
_Table = TypeVar("_Table", "GroundTruthTable", "DetectionTable")


@dataclasses.dataclass(frozen=True, eq=False)
class GroundTruthTable:
    """The annotated objects of every image under evaluation. Columns are converted and checked.

    Attributes:
      image_ids: int64 [n], every image evaluated, also those without objects; no id twice.
      image_id: int64 [g], the image of each object, one of `image_ids`.
      boxes: float64 [g, 4], xyxy in pixels, finite.
      labels: int32 [g], 0..k-1.
      is_crowd: bool [g], COCO's iscrowd: a region of many objects.
      is_difficult: bool [g], VOC's flag.
      area: float64 [g], square pixels; decides small, medium or large. COCO gives the mask's.
      class_names: k names, no name twice.
      category_ids: the data set's own id of each class, for files in COCO format; no id twice.
      sizes: float64 [g, 2], width and height; by default the differences of `boxes`. A COCO file
        gives them itself, and in floating point (x + w) - x is not always w.
      masks: g masks of the size of their images, or None where they are not known.
      image_sizes: int32 [n, 2], height and width of each of `image_ids`, 0 where not known.
      original_ids: by those of `image_ids` that stand for an id which is a text or longer than 64
        bits, that id; files hold it.
      federation: where images were searched for some classes alone, as LVIS's, for which; None:
        for all.

    Raises:
      TypeError: A column of a type that does not convert without loss of meaning.
      ValueError: Columns of different lengths, a box or area that is not finite or beyond 1e100, an
        unknown image or label; the message names the image.
    """

    image_ids: np.ndarray
    image_id: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    is_difficult: np.ndarray
    area: np.ndarray
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    sizes: np.ndarray | None = None
    masks: RleTable | None = None
    image_sizes: np.ndarray | None = None
    original_ids: Mapping[int, int | str] = dataclasses.field(default_factory=dict)
    federation: Federation | None = None

    def __post_init__(self) -> None:
        _set_columns(self, "ground truth", finite=("boxes", "area"))
        _set_column(self, "image_ids", np.int64, (len(self.image_ids),))
        if self.image_sizes is not None:
            _set_column(self, "image_sizes", np.int32, (len(self.image_ids), 2))
        for name in ("class_names", "category_ids"):
            values, most = tuple(getattr(self, name)), len(self.class_names)
            if not len(set(values)) == len(values) == most:
                raise ValueError(f"{name} is {values}; it must be {most} different values")
            object.__setattr__(self, name, values)
        ids, counts = np.unique(self.image_ids, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"image_ids holds the id {ids[counts > 1][0]} twice")
        unknown = np.flatnonzero(~np.isin(self.image_id, self.image_ids))
        if unknown.size:
            row = int(unknown[0])
            raise ValueError(
                f"object {row} is of image {self.image_id[row]}, which is not in image_ids"
            )
        check_labels("ground truth", self.image_id, self.labels, len(self.class_names))

    @property
    def max_detections(self) -> int:
        """How many detections count: COCO's of an image and class, or LVIS's of an image."""
        return 100 if self.federation is None else 300

    @classmethod
    def from_records(
        cls,
        records: Iterable[Any],
        class_names: Sequence[str],
        category_ids: Sequence[int],
        federation: Federation | None = None,
    ) -> "GroundTruthTable":
        """Joins the objects of data records, one record an image, in their order.

        A record has `image_id`, `original_id` (None, or the data set's own), `height` and `width`,
        `masks` or None, and the columns `boxes`, `labels`, `is_crowd`, `is_difficult` and `area`.
        """
        records = tuple(records)
        counts = [len(record.labels) for record in records]
        image_ids = np.array([record.image_id for record in records], np.int64)
        sizes = np.array([(record.height, record.width) for record in records], np.int32)
        return cls(
            image_ids=image_ids,
            image_id=np.repeat(image_ids, counts),
            **{name: _join(records, name) for name in _OF_OBJECTS},
            class_names=tuple(class_names),
            category_ids=tuple(category_ids),
            masks=_join_masks([record.masks for record in records]),
            image_sizes=sizes.reshape(-1, 2),
            original_ids={r.image_id: r.original_id for r in records if r.original_id is not None},
            federation=federation,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionTable:
    """Scored boxes of a data set, in any order. Columns are converted and checked.

    A box of no size is a valid, hopeless detection. An inverted one (x2 < x1 or y2 < y1) is kept
    as well and overlaps nothing; docs/metrics.md tells how each metric counts it.

    Attributes:
      image_id: int64 [d].
      boxes: float64 [d, 4], xyxy in pixels, finite.
      scores: float64 [d], finite; only their order matters.
      labels: int32 [d], 0..k-1.
      sizes: float64 [d, 2], width and height; see `GroundTruthTable`.
      masks: d masks of the size of their images, or None where only boxes were detected.

    Raises:
      TypeError: A column of a type that does not convert without loss of meaning.
      ValueError: Columns of different lengths, a box or score that is not finite or beyond 1e100, a
        negative label; the message names the image.

    Example:
      >>> table = DetectionTable(
      ...     image_id=[7, 7], boxes=[[0, 0, 4, 2], [1, 1, 3, 3]], scores=[0.9, 0.5], labels=[0, 1]
      ... )
      >>> table.sizes.tolist()
      [[4.0, 2.0], [2.0, 2.0]]
    """

    image_id: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray | None = None
    masks: RleTable | None = None

    def __post_init__(self) -> None:
        _set_columns(self, "detection", finite=("boxes", "scores"))
        check_labels("detection", self.image_id, self.labels, None)

    @classmethod
    def from_padded(
        cls,
        image_id: np.ndarray,
        boxes: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        valid: np.ndarray,
        masks: RleTable | None = None,
    ) -> "DetectionTable":
        """Takes the rows of padded batches [b, d] that are `valid`; the others mean nothing.

        `boxes` [b, d, 4] are xyxy in pixels of the original image; there is one of `masks` for each
        valid row, image by image.
        """
        rows = np.asarray(valid, bool)
        return cls(
            image_id=np.repeat(np.asarray(image_id), rows.sum(axis=1)),
            boxes=np.asarray(boxes)[rows],
            scores=np.asarray(scores)[rows],
            labels=np.asarray(labels)[rows],
            masks=masks,
        )


def concatenate_detections(tables: Sequence[DetectionTable]) -> DetectionTable:
    """One table with the rows of all, in their order; of none, an empty table.

    Raises:
      ValueError: some tables have masks and some have none.
    """
    return DetectionTable(
        **{name: _join(tables, name) for name in _OF_DETECTIONS},
        masks=_join_masks([table.masks for table in tables]),
    )


def take_rows(table: _Table, rows: np.ndarray) -> _Table:
    """The same table with some of its rows, by their places or as bool [rows]."""
    columns = {n: getattr(table, n)[rows] for n in (*_COLUMNS, "sizes") if hasattr(table, n)}
    masks = None if table.masks is None else table.masks.take(rows)
    return dataclasses.replace(table, **columns, masks=masks)


def box_sizes(table: GroundTruthTable | DetectionTable) -> np.ndarray:
    """Width and height of every box, float64 [rows, 2]."""
    assert table.sizes is not None  # set on construction
    return table.sizes


def known_masks(table: GroundTruthTable | DetectionTable, name: str) -> RleTable:
    """The masks of a table; refuses one without."""
    if table.masks is None:
        raise ValueError(f"the {name} table has no masks; 'segm' metrics need them")
    return table.masks


def _join(tables: Sequence[Any], name: str) -> np.ndarray:
    return np.concatenate([getattr(table, name) for table in tables]) if tables else np.zeros(0)


def _join_masks(masks: Sequence[RleTable | None]) -> RleTable | None:
    known = [table for table in masks if table is not None]
    if known and len(known) != len(masks):
        raise ValueError(f"{len(known)} of {len(masks)} parts have masks; it must be all or none")
    return join_tables(known) if known else None


def image_places(truth: GroundTruthTable, found: DetectionTable) -> np.ndarray:
    """Of each detection the place of its image among the sorted `image_ids`, int64 [d].

    Raises:
      ValueError: a detection of an image or a class that the ground truth does not have.
    """
    check_labels("detection", found.image_id, found.labels, len(truth.class_names))
    image_ids = np.sort(truth.image_ids)
    place = np.searchsorted(image_ids, found.image_id)
    known = (np.append(image_ids, 0)[place] == found.image_id) & (place < len(image_ids))
    if not known.all():
        row = int(np.argmin(known))
        raise ValueError(
            f"detection {row} is of image {found.image_id[row]}, which the ground truth does not "
            "have"
        )
    return place


def image_ranks(truth: GroundTruthTable) -> np.ndarray:
    """Of the sorted `image_ids` the place of each among the data set's own ids, as NumPy sorts."""
    ranks = np.arange(len(truth.image_ids))
    if truth.original_ids:
        own = [truth.original_ids.get(key, key) for key in np.sort(truth.image_ids).tolist()]
        if any(isinstance(key, str) for key in own):
            own = list(map(str, own))
        ranks[sorted(ranks, key=own.__getitem__)] = np.arange(len(ranks))
    return ranks


def check_labels(
    name: str, image_id: np.ndarray, labels: np.ndarray, num_classes: int | None
) -> None:
    """Refuses labels [rows] below 0 and, where the number of classes is known, too large ones."""
    wrong = labels < 0 if num_classes is None else (labels < 0) | (labels >= num_classes)
    if wrong.any():
        row = int(np.argmax(wrong))
        legal = ">= 0" if num_classes is None else f"in 0..{num_classes - 1}"
        raise ValueError(
            f"{name} {row} of image {image_id[row]} has label {labels[row]}; it must be {legal}"
        )


def _set_columns(table: Any, name: str, *, finite: Sequence[str]) -> None:
    """Converts and checks the columns that have a row for each box."""
    rows = len(table.boxes)
    for column, (dtype, row) in _COLUMNS.items():
        if hasattr(table, column):
            _set_column(table, column, dtype, (rows, *row))
    if table.sizes is None:
        object.__setattr__(table, "sizes", table.boxes[:, 2:] - table.boxes[:, :2])
    _set_column(table, "sizes", np.float64, (rows, 2))
    if table.masks is not None and len(table.masks) != rows:
        raise ValueError(f"there are {len(table.masks)} masks and {rows} boxes")
    for column in finite:
        values: np.ndarray = getattr(table, column)
        bad = np.argwhere(~(np.abs(values) <= _LARGEST))
        if len(bad):
            i = int(bad[0, 0])
            raise ValueError(
                f"{name} {i} of image {table.image_id[i]} has {column} {values[i].tolist()}; "
                f"numbers must be finite, up to {_LARGEST:g}"
            )


def _set_column(table: object, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    values = np.asarray(getattr(table, name))
    column = as_column(name, values, dtype, shape)
    is_whole = issubclass(dtype, np.integer) and values.size
    if is_whole and (wrong := column[column != values]).size:
        raise ValueError(f"{name} holds a number that {dtype.__name__} has as {wrong[0]}")
    object.__setattr__(table, name, column)


def as_column(
    name: str, values: Any, dtype: type[np.generic], shape: tuple[int, ...]
) -> np.ndarray:
    """Values as an array of a type and shape, where that loses no meaning.

    Raises:
      TypeError: they are of a type that would.
      ValueError: they have another shape.
    """
    column = np.asarray(values)
    if column.size == 0 and 0 in shape:
        column = np.zeros(shape, dtype)  # an empty list has no type and no second axis
    if column.shape != shape:
        raise ValueError(f"{name} has shape {column.shape}; the other columns make it {shape}")
    if not np.can_cast(column.dtype, dtype, "same_kind"):
        raise TypeError(f"{name} has type {column.dtype}; it must convert to {dtype.__name__}")
    return column.astype(dtype, copy=False)
