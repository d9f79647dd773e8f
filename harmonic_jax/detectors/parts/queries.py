"""Object queries: where they begin, which object each is for, and noised objects among them.

Their boxes are cx, cy, w, h as parts of the padded image.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from harmonic_jax.checks import check_fields
from harmonic_jax.detectors.parts.objective import masked
from harmonic_jax.ops.assignment import assign
from harmonic_jax.ops.boxes import AnyArray
from harmonic_jax.ops.sampling import AnyKey
from harmonic_jax.structures import GroundTruth

FIRST_SIDE = 0.05  # of the boxes that the cells of the finest map stand for
BOX_L1, BOX_GIOU = 5.0, 2.0  # weights of the box losses, and of their costs
COST_CLS, COST_ALPHA, COST_GAMMA = 2.0, 0.25, 2.0
_EPS = 1e-5  # parts of an image nearer to 0 or 1 count as this
_FAR = 1e4  # a logit whose sigmoid is 1: the box of a cell too near to the border


@dataclasses.dataclass(frozen=True)
class DenoisingConfig:
    """Noised objects that training adds as queries (Zhang et al., DINO, 2022)."""

    num_objects: Annotated[int, "[0, 10000]"] = 100
    """Of an image: its own, repeated as often as they fit, and as many that are to be refused."""
    label_noise: Annotated[float, "[0, 1]"] = 0.5
    """Twice the part of them that is given another class."""
    box_noise: Annotated[float, "[0, 10]"] = 1.0
    """How far their corners move, in half sides of the object."""

    def __post_init__(self) -> None:
        check_fields(self, "denoising")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Queries:
    """What some queries of an image say, or the queries of several layers."""

    cls_logits: Float[Array, "*b q k"]
    boxes: Float[Array, "*b q 4"]  # cx, cy, w, h as parts of the padded image


def cell_boxes(sizes: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """The box of each cell, as logits `[n, 4]`, and whether the cell may be a query `[n, 1]`.

    Squares around the centre of the cell, twice as large on each coarser map. Cells within a
    hundredth of the border, and boxes of nearly the whole image, are left out.
    """
    boxes = []
    for level, (height, width) in enumerate(sizes):
        y, x = np.mgrid[:height, :width].reshape(2, -1) + 0.5
        side = np.full(len(x), FIRST_SIDE * 2**level)
        boxes.append(np.stack((x / width, y / height, side, side), axis=-1))
    parts = np.concatenate(boxes)
    is_inner = np.all((parts > 0.01) & (parts < 0.99), axis=-1, keepdims=True)
    safe = np.clip(parts, 1e-6, 1 - 1e-6)
    logits = np.where(is_inner, np.log(safe / (1 - safe)), _FAR)
    return logits.astype(np.float32), is_inner


def inverse_sigmoid(parts: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """log(x / (1 - x)) of x in [0, 1], both at least 1e-5."""
    parts = jnp.clip(parts, 0.0, 1.0)
    return jnp.log(jnp.maximum(parts, _EPS)) - jnp.log(jnp.maximum(1 - parts, _EPS))


def to_corners(boxes: Float[AnyArray, "*b 4"], shape: tuple[int, ...]) -> Float[Array, "*b 4"]:
    """Parts of an image of a height and width -> xyxy in pixels."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return jnp.concatenate((center - half, center + half), axis=-1) * _scale(shape, boxes.ndim)


def to_parts(boxes: Float[Array, "*b 4"], shape: tuple[int, ...]) -> Float[Array, "*b 4"]:
    """xyxy in pixels -> cx, cy, w, h as parts of an image of a height and width."""
    boxes = boxes / _scale(shape, boxes.ndim)
    low, high = boxes[..., :2], boxes[..., 2:]
    return jnp.concatenate(((low + high) / 2, high - low), axis=-1)


def _scale(shape: tuple[int, ...], ndim: int) -> np.ndarray:
    """Width, height, width, height of an image, along the last axis."""
    return np.array([*shape[::-1]] * 2, np.float32).reshape((1,) * (ndim - 1) + (4,))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Aims:
    """What some queries should say."""

    labels: Int[Array, "*b q"]  # k: no object
    boxes: Float[Array, "*b q 4"]
    is_positive: Bool[Array, "*b q"]
    is_counted: Bool[Array, "*b q"]


def match_queries(found: Queries, objects: Float[AnyArray, "g 4"], truth: GroundTruth) -> Aims:
    """Each object of an image its own query: the assignment that costs least.

    cost = 2 (focal(p, 1) - focal(p, 0)) + 5 L1 + 2 GIoU loss

    with focal's alpha .25 and gamma 2, p the score of the object's class, and L1 of cx, cy, w, h.

    `found` is what the q queries of one layer say of an image; boxes are alike on both sides.

    Source: Carion et al., "DETR", 2020, section 3.1; costs of Lv et al. 2023.
    """
    found = jax.lax.stop_gradient(found)
    num_queries, num_classes = found.cls_logits.shape
    labels = jnp.clip(truth.labels, 0, num_classes - 1)
    prob, rest = jax.nn.sigmoid(found.cls_logits), jax.nn.softplus(found.cls_logits)
    positive = COST_ALPHA * (1 - prob) ** COST_GAMMA * (rest - found.cls_logits)
    negative = (1 - COST_ALPHA) * prob**COST_GAMMA * rest
    cls_cost = (positive - negative).T[labels]  # [g, q]
    # Coordinates first: pairs of boxes as rows of four take ten times as long on a processor.
    ours, theirs = found.boxes.T[:, None], objects.T[:, :, None]
    (low, high), (first, last) = ((a[:2] - a[2:] / 2, a[:2] + a[2:] / 2) for a in (ours, theirs))
    shared = jnp.maximum(jnp.minimum(high, last) - jnp.maximum(low, first), 0).prod(0)
    hull = (jnp.maximum(high, last) - jnp.minimum(low, first)).prod(0)
    union = ours[2:].prod(0) + theirs[2:].prod(0) - shared
    giou_loss = 2 - shared / union - union / hull
    cost = COST_CLS * cls_cost + BOX_L1 * jnp.abs(ours - theirs).sum(0) + BOX_GIOU * giou_loss
    # The search adds costs up: beyond float32 it would never end.
    own = assign(jnp.clip(jnp.nan_to_num(cost, nan=1e6), -1e6, 1e6), truth.valid)
    is_own = own[None] == jnp.arange(num_queries)[:, None]  # [q, g]
    is_positive = is_own.any(axis=1)
    row = jnp.argmax(is_own, axis=1)
    return Aims(
        jnp.where(is_positive, labels[row], num_classes),
        masked(objects[row], is_positive),
        is_positive,
        jnp.ones_like(is_positive),
    )


def noised_objects(
    key: AnyKey,
    objects: Float[AnyArray, "g 4"],
    truth: GroundTruth,
    config: DenoisingConfig,
    *,
    num_classes: int,
) -> tuple[Aims, Int[Array, " m"], Float[Array, "m 4"], Int[Array, " m"]]:
    """Copies of an image's objects that are to be restored, and worse ones to be refused.

    A group has every object twice: with corners that moved by less than half a side (times
    `box_noise`), and by half a side to a whole one, which is no object. The image has as many
    groups as `num_objects` objects make; of more objects than that, the first.

    Returns:
      Of m = 2 num_objects queries: what they should say; the classes they are given; their
      boxes; and their group, -1 of those that fill up.

    Source: Zhang et al., "DINO", ICLR 2023, section 3.3; Lv et al. 2023.
    """
    limit = config.num_objects
    order = jnp.argsort(~truth.valid, stable=True)
    num_objects = jnp.minimum(truth.valid.sum(), limit)
    size = jnp.maximum(num_objects, 1)
    slots = jnp.arange(2 * limit)
    group, place = slots // (2 * size), slots % (2 * size)
    row = order[place % size]
    is_counted = (group < limit // size) & (num_objects > 0)
    is_positive = is_counted & (place < size)

    which, new, amount, sign = jax.random.split(key, 4)
    labels = jnp.where(is_counted, truth.labels[row], num_classes)
    is_other = jax.random.bernoulli(which, config.label_noise / 2, slots.shape) & is_counted
    given = jnp.where(is_other, jax.random.randint(new, slots.shape, 0, num_classes), labels)
    boxes = objects[row]
    moves = jax.random.uniform(amount, boxes.shape) + (place >= size)[:, None]
    moves *= jax.random.rademacher(sign, boxes.shape) * config.box_noise
    corners = to_corners(boxes, (1, 1)) + moves * jnp.tile(boxes[:, 2:] / 2, 2)
    aims = Aims(
        jnp.where(is_positive, labels, num_classes), masked(boxes, is_positive),
        is_positive, is_counted,
    )  # fmt: skip
    noised = to_parts(jnp.clip(corners, 0.0, 1.0), (1, 1))
    return aims, given, noised, jnp.where(is_counted, group, -1)


def who_sees_whom(group: Int[Array, " m"], num_queries: int) -> Bool[Array, "q q"]:
    """Queries see each other; a noised object sees them and its own group, and no query sees it."""
    own = (group[:, None] == group[None]) & (group >= 0)[None]
    own |= jnp.eye(len(group), dtype=bool)  # a query that sees nothing would say NaN
    own = jnp.pad(own, ((0, num_queries), (0, 0)))
    return jnp.pad(own, ((0, 0), (0, num_queries)), constant_values=True)
