"""Every way to make one box of those that show one object, behind one settings object."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from harmonic_jax.ops._types import AnyArray, Array, Bool, Float, Int, Integer, Real
from harmonic_jax.ops.boxes import iou_of_coordinates, pairwise_iou
from harmonic_jax.ops.nms import batched_nms, check_candidates, float32_below

SuppressionMethod = Literal[
    "class", "agnostic", "soft_linear", "soft_gaussian", "matrix", "weighted", "fusion"
]


@dataclasses.dataclass(frozen=True)
class Suppression:
    """How overlapping boxes act on each other, and how many are left.

    Boxes are taken best first; all but `agnostic` look at each class by itself.

    - `class`: non-maximum suppression, a box is kept unless it overlaps a better kept one by more
      than `iou`. Girshick et al., R-CNN, 2014, section 2.2.
    - `agnostic`: the same of all classes together.
    - `soft_linear`: nothing is removed; what overlaps the box m that is taken by more than `iou`
      gets s_b <- s_b (1 - IoU(m, b)). Bodla et al., Soft-NMS, 2017, section 3; the comparison is
      that of the authors' code (the paper writes >=).
    - `soft_gaussian`: s_b <- s_b exp(-IoU(m, b)^2 / sigma), without a threshold. Likewise.
    - `matrix`: all scores at once, an approximation of `soft_gaussian`. With the boxes of a class
      in order, c_i = max over k < i of IoU(k, i) tells how far box i is suppressed itself, and
      s_j <- s_j min(1, min over i < j of exp(-(IoU(i, j)^2 - c_i^2) / sigma)). Wang et al.,
      SOLOv2, 2020, section 3.3, with boxes in place of masks; their code has the inverse of sigma.
    - `weighted`: `class`, and then each box k that is kept becomes the mean of itself and the boxes
      of its class with IoU > `iou`: (sum of s_j b_j) / (sum of s_j). A box may vote for several;
      one that is not finite stays as it is and has no vote. Gidaris and Komodakis, 2015, section 4
      (bounding box voting).
    - `fusion`: for boxes of several views of an image. A box joins the cluster of its class whose
      fused box it overlaps best, if by more than `iou`, and opens a new one otherwise. A cluster
      of t boxes has the fused box (sum of s_i b_i) / (sum of s_i), renewed with each box that
      joins, and at the end the score (sum of s_i) / t * min(t, num_views) / num_views. Solovyev
      et al., Weighted boxes fusion, 2021, section 3.
    """

    method: SuppressionMethod = "class"
    iou: float = 0.5
    """Overlap that counts, in [0, 1], compared as the float64 it is; not used by `soft_gaussian`
    and `matrix`. The authors of `fusion` have 0.55."""
    sigma: float = 0.5
    """Of `soft_gaussian` and `matrix`, > 0; the smaller, the harder the suppression."""
    min_score: float = 0.001
    """Of methods that change scores: boxes whose score is not above it, at first or later, are
    dropped (`fusion`: at first). >= 0."""
    max_outputs: int = 100
    """How many boxes of all classes together are left at most."""
    num_views: int = 1
    """Of `fusion`: how many views there were, whether or not they saw anything; >= 1."""
    max_candidates: int = 1000
    """Of `matrix`: how many of the best boxes are looked at; memory grows with its square."""

    def __post_init__(self) -> None:
        legal = get_args(SuppressionMethod)
        if self.method not in legal:
            raise ValueError(f"method is {self.method!r}; it must be one of {', '.join(legal)}")
        for name, is_legal, words in (
            ("iou", 0 <= self.iou <= 1, "in [0, 1]"),
            ("sigma", self.sigma > 0, "> 0"),
            ("min_score", self.min_score >= 0, ">= 0"),
            ("max_outputs", self.max_outputs >= 1, ">= 1"),
            ("num_views", self.num_views >= 1, ">= 1"),
            ("max_candidates", self.max_candidates >= 1, ">= 1"),
        ):
            if not is_legal:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {words}")


class Suppressed(NamedTuple):
    """The boxes that are left, best new score first. Rows that are not valid hold zeros."""

    boxes: Float[Array, "*b max_outputs 4"]  # float32, as the scores
    scores: Float[Array, "*b max_outputs"]
    labels: Int[Array, "*b max_outputs"]  # int32
    indices: Int[Array, "*b max_outputs"]  # int32, into the input: the box that this one was
    valid: Bool[Array, "*b max_outputs"]


def suppress(
    boxes: Real[AnyArray, "n 4"],
    scores: Real[AnyArray, " n"],
    labels: Integer[AnyArray, " n"],
    settings: Suppression,
    *,
    valid: Bool[AnyArray, " n"] | None = None,
) -> Suppressed:
    """The boxes that a suppression leaves of those of an image.

    Args:
      boxes: `[n 4]`, xyxy in any unit.
      scores: `[n]`, >= 0, higher is better; of equals the lower index comes first.
      labels: `[n]`, any integers.
      settings: the method, see `Suppression`, and its parameters.
      valid: `[n]`, False for rows that are padding (None: none is). A row with a NaN score is
        padding as well.

    Returns:
      `Suppressed` of `[max_outputs]`. `weighted` and `fusion` change boxes; `indices` then name the
      box that is kept, or the best of the cluster. `class`, `agnostic` and `weighted` leave scores
      as they are. Made for inference: it is differentiable in part only.

    >>> boxes = jnp.array([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0], [8.0, 8.0, 9.0, 9.0]])
    >>> scores, labels = jnp.array([0.5, 0.8, 0.25]), jnp.zeros(3, int)
    >>> found = suppress(boxes, scores, labels, Suppression("class", iou=0.5, max_outputs=3))
    >>> found.indices.tolist(), found.valid.tolist()
    ([1, 2, 0], [True, True, False])
    >>> found = suppress(boxes, scores, labels, Suppression("soft_linear", iou=0.5, max_outputs=3))
    >>> found.indices.tolist(), [round(float(s), 3) for s in found.scores]  # 0.5 (1 - 3 / 4)
    ([1, 2, 0], [0.8, 0.25, 0.125])
    """
    boxes, scores, labels = check_candidates(boxes, scores, labels)
    number = len(labels)
    if number == 0:  # one row of padding has the same result
        boxes, scores, labels = jnp.zeros((1, 4)), jnp.zeros(1), jnp.zeros(1, labels.dtype)
        valid = jnp.zeros(1, jnp.bool_)
    is_candidate = ~jnp.isnan(scores) if valid is None else jnp.asarray(valid) & ~jnp.isnan(scores)
    is_hard = settings.method in ("class", "agnostic", "weighted")
    if not is_hard:
        is_candidate &= scores > settings.min_score
    scores = jnp.where(is_candidate, scores, 0.0 if is_hard else -jnp.inf)
    boxes = jnp.where(is_candidate[:, None], boxes, 0.0)
    match settings.method:
        case "class" | "agnostic" | "weighted":
            found = _hard(boxes, scores, labels, is_candidate, settings)
        case "soft_linear" | "soft_gaussian":
            found = _soft(boxes, scores, labels, settings)
        case "matrix":
            found = _matrix(boxes, scores, labels, settings)
        case "fusion":
            found = _fusion(boxes, scores, labels, settings)
    boxes, scores, indices, is_left = found
    return Suppressed(
        jnp.where(is_left[:, None], boxes, 0.0),
        jnp.where(is_left, scores, 0.0),
        jnp.where(is_left, labels[indices].astype(jnp.int32), 0),
        jnp.where(is_left, indices.astype(jnp.int32), 0),
        is_left,
    )


_Found = tuple[Array, Array, Array, Array]  # boxes, scores, indices, is_left; [max_outputs] each


def _hard(
    boxes: Array, scores: Array, labels: Array, is_candidate: Array, settings: Suppression
) -> _Found:
    indices, is_left = batched_nms(
        boxes,
        scores,
        jnp.zeros_like(labels) if settings.method == "agnostic" else labels,
        iou_threshold=settings.iou,
        max_outputs=settings.max_outputs,
        valid=is_candidate,
    )
    own = boxes[indices]
    if settings.method != "weighted":
        return own, scores[indices], indices, is_left

    is_voter = is_candidate & jnp.isfinite(boxes).all(axis=1)
    boxes = jnp.where(is_voter[:, None], boxes, 0.0)  # NaN times 0 is NaN.
    votes = pairwise_iou(own, boxes) > float32_below(settings.iou)
    votes &= labels[indices, None] == labels[None, :]
    votes |= indices[:, None] == jnp.arange(boxes.shape[0], dtype=jnp.int32)[None, :]
    weights = jnp.where(votes & is_voter[None, :], scores[None, :], 0.0)
    # Accelerators multiply float32 matrices in fewer bits, unless told not to.
    total = jnp.matmul(weights, boxes, precision=jax.lax.Precision.HIGHEST)
    mean = total / jnp.sum(weights, axis=1, keepdims=True)
    mean = jnp.where(jnp.isfinite(mean), mean, own)  # all scores 0
    return mean, scores[indices], indices, is_left


def _best_first(
    scores: Array,
    visit: Callable[[Any, Array, Array, Array], tuple[Any, Array]],
    state: Any,
    *,
    min_score: float,
    max_taken: int,
) -> tuple[Array, Any]:
    """Takes one box after the other, the best that is left, while one is above `min_score`.

    `visit` is given the state, the scores that are left (-inf: taken or out), the box and how many
    were taken before it, and gives back the state and the scores as the box leaves them. Returns
    how many were taken, and the state.
    """

    rows = jnp.arange(scores.shape[0], dtype=jnp.int32)

    def is_unfinished(loop: tuple[Array, Array, Array, Any]) -> Array:
        number, highest, _, _ = loop
        return (number < max_taken) & (highest > min_score)

    def take_one(loop: tuple[Array, Array, Array, Any]) -> tuple[Array, Array, Array, Any]:
        number, highest, left, state = loop
        best = _first(left, highest)
        state, left = visit(state, left, best, number)
        left = jnp.where((left > min_score) & (rows != best), left, -jnp.inf)
        return number + 1, jnp.max(left), left, state

    start = jnp.int32(0), jnp.max(scores), scores, state
    number, _, _, state = jax.lax.while_loop(is_unfinished, take_one, start)
    return number, state


def _first(values: Array, highest: Array) -> Array:
    """The first place of the highest value; CPUs take longer for an argmax."""
    places = jnp.arange(values.shape[0], dtype=jnp.int32)
    return jnp.min(jnp.where(values == highest, places, values.shape[0]))


def _soft(boxes: Array, scores: Array, labels: Array, settings: Suppression) -> _Found:
    """A class's boxes never act on another's, so all classes share one loop."""
    coordinates = tuple(boxes.T)
    threshold = float32_below(settings.iou)

    def decay(iou: Array) -> Array:
        if settings.method == "soft_linear":
            return jnp.where(iou > threshold, 1.0 - iou, 1.0)
        return jnp.exp(-jnp.square(iou) / settings.sigma)

    def visit(
        taken: tuple[Array, Array], left: Array, best: Array, place: Array
    ) -> tuple[tuple[Array, Array], Array]:
        iou = iou_of_coordinates(tuple(c[best, None] for c in coordinates), coordinates)
        is_left = jnp.isfinite(left)
        factor = jnp.where(is_left & (labels == labels[best]), decay(iou), 1.0)
        taken = taken[0].at[place].set(left[best]), taken[1].at[place].set(best)
        return taken, jnp.where(is_left, left * factor, -jnp.inf)

    size = settings.max_outputs
    nothing = jnp.zeros(size, jnp.float32), jnp.zeros(size, jnp.int32)
    number, (taken_scores, indices) = _best_first(
        scores, visit, nothing, min_score=settings.min_score, max_taken=size
    )
    is_left = jnp.arange(size, dtype=jnp.int32) < number
    return boxes[indices], taken_scores, indices, is_left


def _matrix(boxes: Array, scores: Array, labels: Array, settings: Suppression) -> _Found:
    best, rows = jax.lax.top_k(scores, min(settings.max_candidates, boxes.shape[0]))
    boxes, labels = boxes[rows], labels[rows]
    rank = jnp.arange(best.shape[0], dtype=jnp.int32)
    acts = (rank[:, None] < rank[None, :]) & (labels[:, None] == labels[None, :])
    squared = jnp.where(acts, jnp.square(pairwise_iou(boxes, boxes)), 0.0)
    suppressed = jnp.max(squared, axis=0, initial=0.0)  # c^2
    exponent = jnp.where(acts, (suppressed[:, None] - squared) / settings.sigma, 0.0)
    decay = jnp.exp(jnp.min(exponent, axis=0, initial=0.0))
    lowered = jnp.where(jnp.isfinite(best), best * decay, -jnp.inf)
    return _take_best(boxes, lowered, rows, settings.min_score, settings.max_outputs)


class _Clusters(NamedTuple):
    """What is fused so far; a place for as many clusters as there are boxes."""

    number: Array
    weighted: Array  # [4 n] sum of s_i b_i
    sums: Array  # [n] sum of s_i
    sizes: Array  # [n] boxes in it
    labels: Array  # [n]
    first: Array  # [n] index of the first box

    def boxes(self) -> Array:
        return self.weighted / jnp.where(self.sums > 0.0, self.sums, 1.0)[None, :]


def _fusion(boxes: Array, scores: Array, labels: Array, settings: Suppression) -> _Found:
    threshold = float32_below(settings.iou)

    def visit(state: _Clusters, left: Array, best: Array, _: Array) -> tuple[_Clusters, Array]:
        box, score = boxes[best], left[best]
        iou = iou_of_coordinates(tuple(state.boxes()), tuple(box[:, None]))
        can_join = (iou > threshold) & (state.labels == labels[best])  # nothing overlaps no cluster
        overlaps = jnp.where(can_join, iou, -1.0)
        closest = _first(overlaps, jnp.max(overlaps))
        is_new = ~can_join[closest]
        place = jnp.where(is_new, state.number, closest)
        state = _Clusters(
            state.number + is_new.astype(jnp.int32),
            state.weighted.at[:, place].add(score * box),
            state.sums.at[place].add(score),
            state.sizes.at[place].add(1),
            state.labels.at[place].set(labels[best]),
            state.first.at[place].set(jnp.where(is_new, best, state.first[place])),
        )
        return state, left

    size = boxes.shape[0]
    none, zeros = jnp.zeros(size, jnp.int32), jnp.zeros(size, jnp.float32)
    start = _Clusters(
        jnp.int32(0), jnp.zeros((4, size), jnp.float32), zeros, none, jnp.zeros_like(labels), none
    )
    _, end = _best_first(scores, visit, start, min_score=settings.min_score, max_taken=size)
    sizes = jnp.maximum(end.sizes, 1).astype(jnp.float32)
    views = settings.num_views
    fused = end.sums / sizes * jnp.minimum(sizes, views) / views
    is_cluster = jnp.arange(size, dtype=jnp.int32) < end.number
    fused = jnp.where(is_cluster, fused, -jnp.inf)
    return _take_best(end.boxes().T, fused, end.first, 0.0, settings.max_outputs)


def _take_best(
    boxes: Array, scores: Array, indices: Array, min_score: float, max_outputs: int
) -> _Found:
    """The rows with the best scores above a limit, of equals the lower ones, in a fixed number."""
    missing = max(max_outputs - scores.shape[0], 0)
    boxes = jnp.pad(boxes, ((0, missing), (0, 0)))
    indices = jnp.pad(indices, (0, missing))
    scores = jnp.pad(scores, (0, missing), constant_values=-jnp.inf)
    best, rows = jax.lax.top_k(scores, max_outputs)
    return boxes[rows], best, indices[rows], best > min_score
