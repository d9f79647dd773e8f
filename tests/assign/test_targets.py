import jax
import jax.numpy as jnp
import numpy as np
from harmonic_jax.assign.targets import dense_targets

from harmonic_jax.detectors.parts.anchors import make_anchors
from harmonic_jax.detectors.parts.matching import match_anchors
from harmonic_jax.structures import GroundTruth
from tests.ops.scenes import random_boxes

IMAGE = (96, 160)
ANCHORS = make_anchors(IMAGE, levels=(3, 6), size_factor=4.0, scales=(1.0,), ratios=(0.5, 1.0, 2.0))
OPTIONS = {"positive_iou": 0.5, "negative_iou": 0.4, "low_quality": True}
K, G = 5, 6


@jax.jit
def targets_of(truth):
    return dense_targets(ANCHORS, truth, num_classes=K, **OPTIONS)


def ground_truth(num_objects, seed=0):
    rng = np.random.default_rng(seed)
    boxes = np.full((G, 4), np.nan, np.float32)
    boxes[:num_objects] = random_boxes(rng, num_objects, IMAGE, 12, 90)
    labels = np.full(G, -7)
    labels[:num_objects] = rng.integers(0, K, num_objects)
    return GroundTruth(jnp.asarray(boxes), jnp.asarray(labels), jnp.arange(G) < num_objects)


def test_targets_say_what_the_matching_says():
    truth = ground_truth(4)
    matches = match_anchors(np.concatenate(ANCHORS), truth.boxes, truth.valid, **OPTIONS)
    targets = targets_of(truth)
    assert [t.labels.shape[0] for t in targets] == [len(a) for a in ANCHORS]
    rows = zip(
        np.concatenate(ANCHORS),
        np.asarray(matches.index),
        np.asarray(matches.state),
        *(np.concatenate([getattr(t, field) for t in targets])
          for field in ("labels", "boxes", "is_positive", "is_counted")),
        strict=True,
    )  # fmt: skip
    boxes, labels = np.asarray(truth.boxes), np.asarray(truth.labels)
    seen = set()
    for anchor, index, state, label, box, is_positive, is_counted in rows:
        seen.add(int(state))
        assert is_positive == (state == 1)
        assert is_counted == (state != -1)
        assert label == (labels[index] if state == 1 else K)
        np.testing.assert_array_equal(box, boxes[index] if state == 1 else anchor)
    assert seen == {-1, 0, 1}


def test_an_image_without_objects_is_background():
    for target in targets_of(ground_truth(0)):
        assert (target.labels == K).all()
        assert target.is_counted.all()
        assert not target.is_positive.any()
        assert np.isfinite(target.boxes).all()


def test_every_object_claims_an_anchor_and_padding_leaks_nothing():
    for seed in range(5):
        truth = ground_truth(5, seed)
        targets = targets_of(truth)
        boxes = np.concatenate([np.asarray(t.boxes)[np.asarray(t.is_positive)] for t in targets])
        assert np.isfinite(boxes).all()
        claimed = {tuple(box) for box in boxes}
        assert claimed == {tuple(box) for box in np.asarray(truth.boxes[:5])}


def test_vmap_equals_a_loop_with_one_compile():
    count = 0

    def traced(truth):
        nonlocal count
        count += 1
        return dense_targets(ANCHORS, truth, num_classes=K, **OPTIONS)

    truths = [ground_truth(n, n) for n in (0, 1, 6)]
    batched = jax.jit(jax.vmap(traced))(jax.tree.map(lambda *x: jnp.stack(x), *truths))
    count = 0
    single = jax.jit(traced)
    for i, truth in enumerate(truths):
        one = jax.tree.map(lambda x, i=i: x[i], batched)
        jax.tree.map(np.testing.assert_array_equal, one, single(truth))
    assert count == 1
