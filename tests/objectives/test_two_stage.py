"""The objectives of two-stage detectors against float64 loops over samples, and torchvision's."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harmonic_jax.assign.sampled import AnchorSamples, RoISamples
from harmonic_jax.objectives.mask import mask_objective
from harmonic_jax.objectives.sums import join_groups
from harmonic_jax.objectives.two_stage import roi_objective, rpn_objective

from harmonic_jax.config import LossConfig
from harmonic_jax.structures import Predictions
from tests.detectors.two_stage_peer import import_torchvision

K = 3  # classes, without background
B, S = 2, 24
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
REAL = jnp.ones(B, bool)
objective = jax.jit(roi_objective, static_argnames=("loss", "delta_weights"))


def boxes_near(rng: np.random.Generator, count: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, and others that overlap them."""
    corner = rng.uniform(0, 30, (*count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(15, 40, (*count, 2))], -1)
    return boxes.astype(np.float32), (boxes + rng.uniform(-3, 3, boxes.shape)).astype(np.float32)


def roi_case(seed: int) -> tuple[np.ndarray, np.ndarray, RoISamples]:
    rng = np.random.default_rng(seed)
    boxes, targets = boxes_near(rng, (B, S))
    is_positive = np.arange(S) < np.array([[9], [4]])
    valid = np.arange(S) < np.array([[S], [17]])
    samples = RoISamples(
        boxes=np.where(valid[..., None], boxes, 0.0),
        labels=np.where(is_positive, rng.integers(0, K, (B, S)), K).astype(np.int32),
        targets=np.where(is_positive[..., None], targets, np.where(valid[..., None], boxes, 0.0)),
        objects=np.zeros((B, S), np.int32),
        is_positive=is_positive,
        valid=valid,
    )
    logits = rng.normal(0, 2, (B, S, K + 1)).astype(np.float32)
    deltas = rng.normal(0, 1, (B, S, K + 1, 4)).astype(np.float32)
    return logits, deltas, jax.tree.map(jnp.asarray, samples)


def smooth_l1(difference: np.ndarray, beta: float) -> float:
    d = np.abs(difference)
    return float(np.where(d < beta, d * d / (2 * beta), d - beta / 2).sum())


def encode(box: np.ndarray, anchor: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    size = anchor[2:] - anchor[:2]
    shift = ((box[:2] + box[2:]) - (anchor[:2] + anchor[2:])) / 2 / size
    return np.concatenate([shift, np.log((box[2:] - box[:2]) / size)]) * weights


def decode(deltas: np.ndarray, anchor: np.ndarray) -> np.ndarray:
    deltas = deltas / np.array(WEIGHTS)
    size = anchor[2:] - anchor[:2]
    centre = (anchor[:2] + anchor[2:]) / 2 + deltas[:2] * size
    half = size * np.exp(deltas[2:]) / 2
    return np.concatenate([centre - half, centre + half])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    overlap = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    return float(overlap / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap))


def roi_reference(logits, deltas, samples: RoISamples, loss: LossConfig) -> float:
    total = 0.0
    for i, j in np.argwhere(np.asarray(samples.valid)):
        z = logits[i, j].astype(np.float64)
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        label = int(samples.labels[i, j])
        cls = -math.log(p[label])
        if label == K:
            total += cls
            continue
        anchor = np.asarray(samples.boxes[i, j], np.float64)
        target = np.asarray(samples.targets[i, j], np.float64)
        own = deltas[i, j, label].astype(np.float64)
        smooth = smooth_l1(own - encode(target, anchor, WEIGHTS), loss.smooth_l1_beta)
        if not loss.hardet:
            total += cls + loss.box_weight * smooth
            continue
        u, entropy = iou(decode(own, anchor), target), -(p * np.log(p)).sum()
        hiou = loss.alpha * (1 + u) ** loss.gamma * (1 - u)
        loc = loss.box_weight * smooth + hiou  # but the factor is of the unweighted loss
        contrast = max(0.0, abs(p[label] - u) - loss.margin) / (1 + math.exp(entropy))
        total += (1 + math.exp(-smooth - hiou)) * cls + (1 + math.exp(-cls)) * loc + contrast
    return total


LOSSES = {
    "baseline": LossConfig(hardet=False),
    "hardet": LossConfig(),
    "ce factors": LossConfig(factor_source="ce"),
    "other constants": LossConfig(
        alpha=0.7, gamma=0.5, margin=0.1, box_weight=2.0, smooth_l1_beta=0.5
    ),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_roi_objective_equals_a_loop(loss: LossConfig) -> None:
    logits, deltas, samples = roi_case(0)
    got, log = objective(logits, deltas, samples, REAL, loss=loss, delta_weights=WEIGHTS)
    want = roi_reference(logits, deltas, samples, loss)
    np.testing.assert_allclose(got.total, want, rtol=2e-5)
    assert (float(got.normalizer), float(got.num_positive)) == (S + 17, 13)
    np.testing.assert_allclose(got.normalized()["loss"], want / (S + 17), rtol=2e-5)
    scores = jax.nn.softmax(logits)[..., :K]
    own = jnp.take_along_axis(scores, jnp.minimum(samples.labels, K - 1)[..., None], -1)[..., 0]
    mean = float(jnp.where(samples.is_positive, own, 0.0).sum()) / 13
    np.testing.assert_allclose(log.normalized()["positive_score"], mean, rtol=1e-5)


@pytest.mark.parametrize("mode", ["through", "stop", "cls_only"])
def test_gradient_of_hardet_equals_finite_differences(mode: str) -> None:
    """In the other modes factors are constants: the gradient is another one."""
    logits, deltas, samples = roi_case(1)
    loss = LossConfig(factor_gradient=mode)

    @jax.jit
    def total(a: jax.Array, b: jax.Array) -> jax.Array:
        arguments = (logits * a, deltas * b, samples, REAL)
        return roi_objective(*arguments, loss=loss, delta_weights=WEIGHTS)[0].total

    with jax.enable_x64(True):
        logits, deltas = logits.astype(np.float64), deltas.astype(np.float64)
        got = np.array(jax.grad(total, argnums=(0, 1))(1.0, 1.0))
        eps = 1e-4  # boxes are decoded in float32, which smaller steps would show
        want = np.array(
            [
                (total(1 + eps, 1.0) - total(1 - eps, 1.0)) / (2 * eps),
                (total(1.0, 1 + eps) - total(1.0, 1 - eps)) / (2 * eps),
            ]
        )
    assert np.isfinite(got).all()
    if mode == "through":
        np.testing.assert_allclose(got, want, rtol=1e-4)
    else:
        assert (np.abs(got / want - 1) > 1e-3).any()


def rpn_case(seed: int) -> tuple[Predictions, AnchorSamples, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = (30, 14)
    anchors, targets = boxes_near(rng, (sum(sizes),))
    rows = np.stack([rng.permutation(sum(sizes))[:S] for _ in range(B)])
    is_positive = np.arange(S) < np.array([[6], [0]])
    samples = AnchorSamples(
        rows=rows,
        anchors=anchors[rows],
        targets=np.where(is_positive[..., None], targets[rows], anchors[rows]),
        is_positive=is_positive,
        valid=np.arange(S) < np.array([[20], [S]]),
    )
    predictions = Predictions(
        tuple(jnp.asarray(rng.normal(0, 2, (B, n, 1)), jnp.float32) for n in sizes),
        tuple(jnp.asarray(rng.normal(0, 0.5, (B, n, 4)), jnp.float32) for n in sizes),
    )
    return predictions, jax.tree.map(jnp.asarray, samples), anchors


@pytest.mark.parametrize("beta", [0.0, 1 / 9])
def test_rpn_objective_equals_a_loop(beta: float) -> None:
    predictions, samples, _ = rpn_case(0)
    got = rpn_objective(predictions, samples, REAL, smooth_l1_beta=beta)
    logits = np.concatenate(predictions.cls_logits, 1)[..., 0].astype(np.float64)
    deltas = np.concatenate(predictions.deltas, 1).astype(np.float64)
    cls_loss = box_loss = 0.0
    for i, j in np.argwhere(np.asarray(samples.valid)):
        row, positive = int(samples.rows[i, j]), bool(samples.is_positive[i, j])
        cls_loss += math.log1p(math.exp(-logits[i, row] if positive else logits[i, row]))
        if positive:
            anchor, box = (
                np.asarray(x[i, j], np.float64) for x in (samples.anchors, samples.targets)
            )
            box_loss += smooth_l1(deltas[i, row] - encode(box, anchor, (1.0,) * 4), beta or 1e-12)
    np.testing.assert_allclose(got.terms["rpn_cls_loss"], cls_loss, rtol=2e-5)
    np.testing.assert_allclose(got.terms["rpn_box_loss"], box_loss, rtol=2e-5)
    np.testing.assert_allclose(got.total, cls_loss + box_loss, rtol=2e-5)
    assert float(got.normalizer) == 20 + S


def test_torchvision_agrees_on_the_same_samples() -> None:
    """`fastrcnn_loss`, `compute_loss` of the RPN, and `maskrcnn_loss`'s cross entropy."""
    detection = import_torchvision().models.detection
    import torch

    logits, deltas, samples = roi_case(2)
    loss = LossConfig(hardet=False, smooth_l1_beta=1 / 9)
    got, _ = objective(logits, deltas, samples, REAL, loss=loss, delta_weights=WEIGHTS)
    rows = np.asarray(samples.valid)
    coder = detection._utils.BoxCoder(WEIGHTS)
    targets = coder.encode_single(
        *(torch.from_numpy(np.array(x)[rows]) for x in (samples.targets, samples.boxes))
    )
    labels = (np.asarray(samples.labels)[rows] + 1) % (K + 1)  # background is their first
    cls_loss, box_loss = detection.roi_heads.fastrcnn_loss(
        torch.from_numpy(np.roll(logits[rows], 1, -1)),
        torch.from_numpy(np.roll(deltas[rows], 1, -2).reshape(-1, 4 * (K + 1))),
        [torch.from_numpy(labels.astype(np.int64))],
        [targets],
    )
    ours = got.normalized()
    np.testing.assert_allclose(ours["cls_loss"], cls_loss.item(), rtol=2e-5)
    np.testing.assert_allclose(ours["box_loss"], box_loss.item(), rtol=2e-5)

    predictions, anchors, every = rpn_case(2)
    got = rpn_objective(predictions, anchors, REAL, smooth_l1_beta=1 / 9)
    n = len(every)
    positive, negative = np.zeros((2, B, n), bool)
    boxes = np.stack([every] * B)
    for i, j in np.argwhere(np.asarray(anchors.valid)):
        row = anchors.rows[i, j]
        (positive if anchors.is_positive[i, j] else negative)[i, row] = True
        boxes[i, row] = anchors.targets[i, j]
    drawn = tuple([torch.from_numpy(image) for image in mask] for mask in (positive, negative))
    rpn = SimpleNamespace(fg_bg_sampler=lambda _: drawn)
    encoder = detection._utils.BoxCoder((1.0,) * 4)
    cls_loss, box_loss = detection.rpn.RegionProposalNetwork.compute_loss(
        rpn,
        torch.from_numpy(np.concatenate(predictions.cls_logits, 1)).reshape(-1, 1),
        torch.from_numpy(np.concatenate(predictions.deltas, 1)).reshape(-1, 4),
        [torch.from_numpy(image.astype(np.float32)) for image in positive],
        [encoder.encode_single(torch.from_numpy(b), torch.from_numpy(every)) for b in boxes],
    )
    np.testing.assert_allclose(got.normalized()["rpn_cls_loss"], cls_loss.item(), rtol=2e-5)
    np.testing.assert_allclose(got.normalized()["rpn_box_loss"], box_loss.item(), rtol=2e-5)


def test_mask_objective_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    _, _, samples = roi_case(3)
    logits = rng.normal(0, 2, (B, S, 6, 6, K + 1)).astype(np.float32)
    coverage = rng.uniform(0, 1, (B, S, 6, 6)).astype(np.float32)
    coverage[0, 0, 0, 0] = 0.5
    got = mask_objective(jnp.asarray(logits), jnp.asarray(coverage), samples, REAL)
    want = 0.0
    for i, j in np.argwhere(np.asarray(samples.is_positive)):
        z = logits[i, j, ..., int(samples.labels[i, j])].astype(np.float64)
        z = np.where(coverage[i, j] >= 0.5, -z, z)
        want += np.log1p(np.exp(z)).mean()
    np.testing.assert_allclose(got.total, want, rtol=1e-5)
    assert float(got.normalizer) == 13
    np.testing.assert_allclose(got.normalized()["mask_loss"], want / 13, rtol=1e-5)


def test_an_image_that_is_not_real_counts_nowhere() -> None:
    logits, deltas, samples = roi_case(4)
    predictions, anchors, _ = rpn_case(4)
    coverage = jnp.ones((B, S, 2, 2))

    @jax.jit
    def sums(logits, deltas, predictions, samples, anchors, is_real, coverage):
        masks = jnp.broadcast_to(logits[:, :, None, None], (*logits.shape[:2], 2, 2, K + 1))
        groups = (
            rpn_objective(predictions, anchors, is_real, smooth_l1_beta=1 / 9),
            mask_objective(masks, coverage, samples, is_real),
            *roi_objective(
                logits, deltas, samples, is_real, loss=LossConfig(), delta_weights=WEIGHTS
            ),
        )
        return join_groups(groups, is_real)

    arguments = (jnp.asarray(logits), jnp.asarray(deltas), predictions, samples, anchors)
    first = jax.tree.map(lambda x: x[:1], arguments)
    alone = sums(*first, jnp.ones(1, bool), coverage[:1])
    is_real = jnp.array([True, False])
    masked = sums(*arguments, is_real, coverage)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), alone, masked)
    grad = jax.grad(lambda z: sums(z, *arguments[1:], is_real, coverage).total)(arguments[0])
    assert not np.any(grad[1])
    assert np.any(grad[0])


def test_no_positive_sample_at_all() -> None:
    logits, deltas, samples = roi_case(5)
    none = samples._replace(
        is_positive=jnp.zeros((B, S), bool), labels=jnp.full((B, S), K), targets=samples.boxes
    )
    got, log = objective(logits, deltas, none, REAL, loss=LossConfig(), delta_weights=WEIGHTS)
    assert float(got.num_positive) == 0
    np.testing.assert_allclose(
        got.total, roi_reference(logits, deltas, none, LossConfig()), rtol=2e-5
    )
    assert {float(v) for v in log.normalized().values()} == {0.0}
