"""The RoI head: padding, its samples and its detections against loops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax import config as c
from harmonic_jax.detectors import faster_rcnn
from harmonic_jax.detectors.roi_head import BoxHead, sample_rois
from harmonic_jax.detectors.rpn import Proposals
from tests.detectors import reference as ref
from tests.detectors import tiny
from tests.detectors.tiny import K


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_padding_changes_neither_other_rois_nor_statistics(norm: str) -> None:
    layers = "two_fc" if norm == "none" else "four_conv_fc"
    config = c.BoxHeadConfig(layers=layers, norm=norm, num_hidden=8, pool_size=3)
    rois = np.random.default_rng(0).normal(size=(9, 3, 3, 8)).astype(np.float32)
    rois[5:] *= 1e3
    head = BoxHead(config, 8, K, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(head)

    @jax.jit
    def run(rois: jax.Array, where: jax.Array | None) -> tuple:
        head = nnx.merge(graphdef, state, copy=True)
        head.train()
        outputs = head(rois, where)
        return outputs, nnx.to_pure_dict(nnx.state(head, nnx.BatchStat))

    outputs, statistics = run(rois, jnp.arange(9) < 5)
    expected, expected_statistics = run(rois[:5], None)
    for got, want in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(got[:5], want, rtol=1e-4, atol=1e-6)
    tiny.assert_close(statistics, expected_statistics, rtol=1e-4, atol=1e-6)
    assert bool(jax.tree.leaves(statistics)) == (norm == "batch")


# --- Samples -------------------------------------------------------------------------------------


def test_rois_have_the_label_and_box_of_their_object() -> None:
    """Of images with no, one and four objects, and of one without proposals but the objects."""
    rng, config = np.random.default_rng(0), c.BoxHeadConfig(num_samples=40)
    truth = tiny.random_truth(rng, (0, 1, 4, 4))
    near = [tiny.objects_of(truth, i)[0].repeat(8, 0)[:20] for i in range(4)]
    boxes = np.stack(
        [
            np.concatenate([tiny.boxes_of(rng, 50 - len(b)), b + rng.uniform(-4, 4, b.shape)])
            for b in near
        ]
    ).astype(np.float32)
    exists = (rng.uniform(size=boxes.shape[:2]) < 0.8) & (np.arange(4) < 3)[:, None]
    boxes[~exists] = np.nan
    proposals = Proposals(jnp.asarray(boxes), jnp.ones(exists.shape), jnp.asarray(exists))
    keys = jax.random.split(jax.random.key(1), 4)
    draw = functools.partial(sample_rois, config=config, num_classes=K)
    together = jax.jit(jax.vmap(draw))(keys, proposals, truth)
    for image in range(4):
        rois = jax.tree.map(np.asarray, tiny.row(together, image))
        real, labels = tiny.objects_of(truth, image)
        every = np.concatenate([boxes[image], truth.boxes[image]])
        may = np.concatenate([exists[image], truth.valid[image]])
        table = ref.iou_table(np.where(may[:, None], every, 0.0), real)
        positive = may & (table.max(1, initial=0.0) >= 0.5)
        num_positive = min(int(positive.sum()), 10)
        num_negative = min(int((may & ~positive).sum()), 40 - num_positive)
        assert rois.is_positive.sum() == num_positive
        assert rois.valid.sum() == num_positive + num_negative
        rows = rois.rows[rois.valid]
        assert may[rows].all()
        np.testing.assert_array_equal(rois.boxes[rois.valid], every[rows])
        np.testing.assert_array_equal(rois.is_positive[rois.valid], positive[rows])
        assert not np.any(rois.boxes[~rois.valid])
        assert (rois.labels[~rois.is_positive] == K).all()
        if num_positive:
            owner = table[rois.rows[rois.is_positive]].argmax(1)
            np.testing.assert_array_equal(rois.objects[rois.is_positive], owner)
            np.testing.assert_array_equal(rois.labels[rois.is_positive], labels[owner])
    # Without proposals the objects themselves are all there is.
    drawn = {tuple(box) for box in rois.boxes[rois.valid].tolist()}
    assert drawn == {tuple(box) for box in np.asarray(truth.boxes[3, :4]).tolist()}
    assert rois.is_positive.sum() == 4


# --- Detections ----------------------------------------------------------------------------------

P, SIZE = 30, (60.0, 80.0)
CONFIG = c.FasterRCNNConfig(
    postprocess=c.PostprocessConfig(topk=None, min_size=2.0, max_detections=12)
)
detect = jax.jit(functools.partial(faster_rcnn.detect_in_image, config=CONFIG))


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, Proposals]:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-5, 60, (P, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(3, 30, (P, 2))], -1).astype(np.float32)
    logits = rng.normal(0, 2, (P, K + 1)).astype(np.float32)
    deltas = rng.normal(0, 1, (P, K + 1, 4)).astype(np.float32)
    return logits, deltas, Proposals(boxes, np.ones(P, np.float32), np.arange(P) < 25)


def expected_detections(logits, deltas, proposals, size=SIZE, topk: int | None = None) -> list:
    candidates = []
    for i in np.flatnonzero(proposals.valid):
        p = ref.softmax(logits[i].astype(np.float64))
        for k in range(K):
            box = proposals.boxes[i].astype(np.float64)
            box = ref.decode(deltas[i, k].astype(np.float64), box, ref.SSD_WEIGHTS)
            candidates.append((p[k], k, np.clip(box, 0, np.tile(size[::-1], 2))))
    candidates = sorted(candidates, key=lambda c: -c[0])[:topk]
    large = [c for c in candidates if c[0] > 0.05 and (c[2][2:] - c[2][:2] >= 2.0).all()]
    return ref.suppress(large, 0.5, 12)


def test_detections_equal_a_loop() -> None:
    """Alone and in a batch of images of different sizes."""
    cases, sizes = [random_case(seed) for seed in range(4)], [SIZE, (30.0, 30.0), SIZE, SIZE]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *cases)
    together = jax.jit(jax.vmap(detect))(*stacked, jnp.array(sizes))
    for i, (case, size) in enumerate(zip(cases, sizes, strict=True)):
        expected = expected_detections(*case, size)
        assert len(expected) > 4
        ref.assert_detections(detect(*case, jnp.array(size)), expected)
        ref.assert_detections(tiny.row(together, i), expected)


def test_few_candidates_are_the_best_of_all() -> None:
    fewer = dataclasses.replace(CONFIG.postprocess, topk=8)
    config = dataclasses.replace(CONFIG, postprocess=fewer)
    case = random_case(0)
    detect = jax.jit(functools.partial(faster_rcnn.detect_in_image, config=config))
    found = detect(*case, jnp.array(SIZE))
    ref.assert_detections(found, expected_detections(*case, topk=8))


def test_nothing_comes_of_nan_infinity_padding_or_background() -> None:
    logits, deltas, proposals = random_case(0)
    logits[0] = np.nan
    deltas[1] = np.inf
    deltas[2] = np.nan
    logits[3, K] = 40.0
    proposals = proposals._replace(valid=np.arange(P) < 4)
    ref.assert_detections(detect(logits, deltas, proposals, jnp.array(SIZE)), [])
