"""What each family minimises, on outputs of our choice, and the same as slow float64 loops."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from harmonic_jax import config as c
from harmonic_jax.detectors import refinedet, retinanet, ssd
from harmonic_jax.detectors.mask_rcnn import mask_sums
from harmonic_jax.detectors.parts.anchors import make_anchors
from harmonic_jax.detectors.parts.matching import Samples
from harmonic_jax.detectors.parts.objective import LossSums
from harmonic_jax.detectors.refinedet import RefineDetPredictions
from harmonic_jax.detectors.roi_head import roi_sums
from harmonic_jax.detectors.rpn import rpn_sums
from harmonic_jax.structures import GroundTruth, Predictions
from tests.detectors import reference as ref
from tests.detectors import tiny
from tests.detectors.tiny import K

SHAPE = (64, 64)
BOTH, FIRST = jnp.array([True, True]), jnp.array([True, False])
MATCH = c.MatchConfig()


@dataclasses.dataclass(frozen=True)
class Family:
    """What a network says of two images, what that is compared with, and how."""

    inputs: Any
    truth: Any
    without: Any  # the truth of images without objects
    sums: Callable[[Any, Any, jax.Array, c.LossConfig], LossSums]
    loop: Callable[[Any, Any, Any, c.LossConfig], tuple[float, float]]  # loss, number of positives
    free: Callable[[Any], Any]  # gradient -> what is not counted


def without_objects(truth: GroundTruth) -> GroundTruth:
    return dataclasses.replace(truth, valid=jnp.zeros_like(truth.valid))


def rows_without_gradient(gradients: Any) -> Any:
    return jax.tree.map(
        lambda g: np.broadcast_to((g == 0).all(-1, keepdims=True), g.shape), gradients
    )


def second_image(gradients: Any) -> Any:
    return jax.tree.map(
        lambda g: np.zeros(g.shape, bool) | (np.arange(2).reshape(2, *[1] * (g.ndim - 1)) == 1),
        gradients,
    )


def multibox_free(gradients: Predictions) -> Predictions:
    """Of the logits every negative's is looked at, for the hardest are chosen."""
    return Predictions(second_image(gradients.cls_logits), rows_without_gradient(gradients.deltas))


# --- RetinaNet -----------------------------------------------------------------------------------

RETINANET = c.RetinaNetConfig(
    levels=(4, 5),
    anchors=c.AnchorConfig(size_factor=0.9, scales=(1.0, 1.4), ratios=(0.7, 1.0, 1.4)),
)
ANCHORS = make_anchors(SHAPE, RETINANET.levels, RETINANET.anchors)


def retinanet_case(seed: int) -> tuple[Predictions, GroundTruth]:
    rng = np.random.default_rng(seed)
    truth = tiny.random_truth(rng, (4, 3))
    return tiny.random_outputs(rng, tuple(map(len, ANCHORS)), mean=-1.0), truth


def retinanet_sums(predictions, truth, is_real, loss, *, match=MATCH, batch_axis=None):
    model = tiny.Given(dataclasses.replace(RETINANET, match=match), predictions)
    batch = tiny.batch_of(truth, SHAPE, is_real)
    return retinanet.loss_sums(model, batch, loss, tiny.KEY, batch_axis)


def retinanet_loop(predictions, truth, is_real, loss, *, match=MATCH):
    total, num_positive = 0.0, 0
    anchors = np.concatenate(ANCHORS).astype(np.float64)
    for image in np.flatnonzero(is_real):
        boxes, labels = tiny.objects_of(truth, image)
        logits = tiny.of_image(predictions.cls_logits, image)
        deltas = tiny.of_image(predictions.deltas, image)
        for n, g in enumerate(ref.match_by_overlap(anchors, boxes, match)):
            if g is not None and g < 0:
                total += loss.cls_weight * ref.focal(logits[n], -1, loss)
            elif g is not None:
                num_positive += 1
                total += ref.sigmoid_positive(
                    logits[n], labels[g], deltas[n], anchors[n], boxes[g], loss=loss
                )
    return total / max(num_positive, 1), num_positive


def retinanet_family(seed: int) -> Family:
    inputs, truth = retinanet_case(seed)
    without = without_objects(truth)
    return Family(inputs, truth, without, retinanet_sums, retinanet_loop, rows_without_gradient)


# --- SSD and RefineDet ---------------------------------------------------------------------------


def ssd_family(seed: int, ratio: float = 3.0) -> Family:
    """Boxes of two sizes, and predictions near enough to overlap a few objects."""
    rng = np.random.default_rng(seed)
    half = rng.uniform(0.7, 1.4, (100, 2)) * np.where(np.arange(100) < 60, 9.0, 13.0)[:, None]
    centre = rng.uniform(10, 54, (100, 2))
    anchors = np.concatenate([centre - half, centre + half], -1).astype(np.float32)
    truth = tiny.random_truth(rng, (4, 2))
    inputs = tiny.random_outputs(rng, (60, 40), num_outputs=K + 1, spread=(2.0, 1.5))
    match = c.MultiBoxMatchConfig(negative_ratio=ratio)

    def sums(predictions, truth, is_real, loss):
        batch = tiny.batch_of(truth, SHAPE, is_real)
        return ssd.multibox_sums(predictions, jnp.asarray(anchors), batch, loss, match)

    def loop(predictions, truth, is_real, loss):
        images = [
            ref.multibox_loss(
                tiny.of_image(predictions.cls_logits, image),
                tiny.of_image(predictions.deltas, image),
                anchors.astype(np.float64),
                *tiny.objects_of(truth, image),
                loss,
                ratio=ratio,
            )
            for image in np.flatnonzero(is_real)
        ]
        total, num_positive = np.sum(images, axis=0)
        return total / max(num_positive, 1), num_positive

    return Family(inputs, truth, without_objects(truth), sums, loop, multibox_free)


# Many of the random anchors have less objectness.
REFINEDET = dataclasses.replace(tiny.REFINEDET, max_ratio=1, min_objectness=0.2)


def refinedet_case(seed: int) -> tuple[RefineDetPredictions, GroundTruth]:
    rng, sizes = np.random.default_rng(seed), (64, 16, 4, 1)
    arm = tiny.random_outputs(rng, sizes, num_outputs=2, spread=(1.5, 1.0))
    odm = tiny.random_outputs(rng, sizes, num_outputs=K + 1, spread=(2.0, 1.5))
    return RefineDetPredictions(arm, odm), tiny.random_truth(rng, (4, 2))


def refinedet_anchors() -> np.ndarray:
    return np.concatenate(refinedet.default_boxes(REFINEDET, SHAPE)).astype(np.float64)


def refinedet_sums(outputs, truth, is_real, loss):
    batch = tiny.batch_of(truth, SHAPE, is_real)
    return refinedet.loss_sums(tiny.Given(REFINEDET, outputs), batch, loss, tiny.KEY, None)


def refinedet_loop(outputs, truth, is_real, loss, min_objectness=REFINEDET.min_objectness):
    anchors, sums = refinedet_anchors(), np.zeros(4)
    plain = dataclasses.replace(loss, hardet=False)
    for image in np.flatnonzero(is_real):
        boxes, labels = tiny.objects_of(truth, image)
        logits, deltas, odm_logits, odm_deltas = (
            tiny.of_image(levels, image) for module in outputs for levels in vars(module).values()
        )
        refined = [ref.decode(d, a, ref.SSD_WEIGHTS) for d, a in zip(deltas, anchors, strict=True)]
        objectness = np.array([ref.softmax(row)[0] for row in logits])
        sums[:2] += ref.multibox_loss(logits, deltas, anchors, boxes, 0 * labels, plain)
        sums[2:] += ref.multibox_loss(
            odm_logits,
            odm_deltas,
            np.array(refined),
            boxes,
            labels,
            loss,
            is_candidate=objectness >= min_objectness,
        )
    return sums[0] / max(sums[1], 1) + sums[2] / max(sums[3], 1), sums[3]


def refinedet_family(seed: int) -> Family:
    outputs, truth = refinedet_case(seed)
    return Family(
        outputs,
        truth,
        without_objects(truth),
        refinedet_sums,
        refinedet_loop,
        lambda g: RefineDetPredictions(second_image(g.arm), multibox_free(g.odm)),
    )


# --- Two stages ----------------------------------------------------------------------------------

S = 24
HEAD = c.BoxHeadConfig()


def boxes_near(rng: np.random.Generator, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, and others that overlap them."""
    corner = rng.uniform(0, 30, (*shape, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(15, 40, (*shape, 2))], -1)
    return boxes.astype(np.float32), (boxes + rng.uniform(-3, 3, boxes.shape)).astype(np.float32)


def roi_samples(rng: np.random.Generator) -> Samples:
    """9 and 4 positives, 24 and 17 samples."""
    boxes, near = boxes_near(rng, 2, S)
    is_positive = np.arange(S) < np.array([[9], [4]])
    valid = np.arange(S) < np.array([[S], [17]])
    boxes = np.where(valid[..., None], boxes, 0.0)
    samples = Samples(
        rows=np.zeros((2, S), np.int32),
        boxes=boxes,
        labels=np.where(is_positive, rng.integers(0, K, (2, S)), K).astype(np.int32),
        targets=np.where(is_positive[..., None], near, boxes),
        objects=np.zeros((2, S), np.int32),
        is_positive=is_positive,
        valid=valid,
    )
    return jax.tree.map(jnp.asarray, samples)


def roi_loop(inputs, samples, is_real, loss):
    total, counted = 0.0, np.asarray(samples.valid & is_real[:, None])
    for i, j in np.argwhere(counted):
        logits, label = np.asarray(inputs[0][i, j], np.float64), int(samples.labels[i, j])
        if label == K:
            total -= loss.cls_weight * np.log(ref.softmax(logits)[K])
            continue
        anchor, target = (np.asarray(x[i, j], np.float64) for x in (samples.boxes, samples.targets))
        own = np.asarray(inputs[1][i, j, label], np.float64)
        total += ref.softmax_positive(logits, label, own, anchor, target, loss=loss)
    return total / counted.sum(), (np.asarray(samples.is_positive) & counted).sum()


def roi_family(seed: int) -> Family:
    rng = np.random.default_rng(seed)
    samples = roi_samples(rng)
    none = samples._replace(
        is_positive=jnp.zeros((2, S), bool), labels=jnp.full((2, S), K), targets=samples.boxes
    )
    logits = jnp.asarray(rng.normal(0, 2, (2, S, K + 1)), jnp.float32)
    deltas = jnp.asarray(rng.normal(0, 1, (2, S, K + 1, 4)), jnp.float32)

    def sums(inputs, samples, is_real, loss):
        own, log = roi_sums(*inputs, samples, is_real, loss, HEAD)
        return dataclasses.replace(own, terms=own.terms | {"log": log})

    return Family((logits, deltas), samples, none, sums, roi_loop, rows_without_gradient)


def rpn_loop(predictions, samples, is_real, loss):
    logits = np.concatenate(predictions.cls_logits, 1)[..., 0].astype(np.float64)
    deltas = np.concatenate(predictions.deltas, 1).astype(np.float64)
    total, counted = 0.0, np.asarray(samples.valid & is_real[:, None])
    for i, j in np.argwhere(counted):
        row, is_positive = int(samples.rows[i, j]), bool(samples.is_positive[i, j])
        total += np.log1p(np.exp(-logits[i, row] if is_positive else logits[i, row]))
        if is_positive:
            anchor, box = (
                np.asarray(x[i, j], np.float64) for x in (samples.boxes, samples.targets)
            )
            total += ref.smooth_l1(deltas[i, row] - ref.encode(box, anchor), 1 / 9)
    return total / counted.sum(), (np.asarray(samples.is_positive) & counted).sum()


def rpn_family(seed: int) -> Family:
    rng, sizes = np.random.default_rng(seed), (30, 14)
    anchors, near = boxes_near(rng, sum(sizes))
    rows = np.stack([rng.permutation(sum(sizes))[:S] for _ in range(2)])
    is_positive = np.arange(S) < np.array([[6], [2]])
    samples = Samples(
        rows=rows,
        boxes=anchors[rows],
        labels=np.zeros(rows.shape, np.int32),
        objects=np.zeros(rows.shape, np.int32),
        targets=np.where(is_positive[..., None], near[rows], anchors[rows]),
        is_positive=is_positive,
        valid=np.arange(S) < np.array([[20], [S]]),
    )
    samples = jax.tree.map(jnp.asarray, samples)
    none = samples._replace(is_positive=jnp.zeros((2, S), bool), targets=samples.boxes)

    def sums(predictions, samples, is_real, loss):
        return rpn_sums(predictions, samples, is_real, c.RPNConfig())

    inputs = tiny.random_outputs(rng, sizes, num_outputs=1, spread=(2.0, 0.5))
    return Family(inputs, samples, none, sums, rpn_loop, rows_without_gradient)


def mask_family(seed: int) -> Family:
    rng = np.random.default_rng(seed)
    samples = roi_samples(rng)
    logits = jnp.asarray(rng.normal(0, 2, (2, S, 6, 6, K + 1)), jnp.float32)
    coverage = np.float32(rng.uniform(0, 1, (2, S, 6, 6)))
    coverage[0, 0, 0, 0] = 0.5

    def sums(logits, samples, is_real, loss):
        return mask_sums(logits, jnp.asarray(coverage), samples, is_real)

    def loop(logits, samples, is_real, loss):
        positive, total = np.asarray(samples.is_positive & is_real[:, None]), 0.0
        for i, j in np.argwhere(positive):
            z = np.asarray(logits[i, j, ..., int(samples.labels[i, j])], np.float64)
            total += np.log1p(np.exp(np.where(coverage[i, j] >= 0.5, -z, z))).mean()
        return total / max(positive.sum(), 1), positive.sum()

    none = samples._replace(is_positive=jnp.zeros((2, S), bool))
    return Family(logits, samples, none, sums, loop, lambda g: np.asarray(g == 0))


FAMILIES: dict[str, Callable[..., Family]] = {
    "retinanet": retinanet_family,
    "ssd": ssd_family,
    "refinedet": refinedet_family,
    "rois": roi_family,
    "rpn": rpn_family,
    "masks": mask_family,
}
