"""SSD and RefineDet as wholes: buckets, batches, and how RefineDet puts its modules together."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from harmonic_jax.backbones.refinedet import RefineDetPredictions

from harmonic_jax import detectors
from harmonic_jax.config import (
    Config,
    DefaultBoxConfig,
    LossConfig,
    MultiBoxPostprocessConfig,
    RefineDetConfig,
    SSDConfig,
    VGGConfig,
)
from harmonic_jax.detectors import build_model, refinedet
from harmonic_jax.detectors.parts.selection import non_finite_images
from harmonic_jax.structures import Batch, Predictions
from tests.objectives.multibox_reference import decode, softmax
from tests.training.tiny import random_batch

NUM_CLASSES = 3
# Without norms an image's result does not depend on the others.
BACKBONE = VGGConfig(width=4)
CONFIGS = {
    "ssd": SSDConfig(
        backbone=BACKBONE,
        fc6_dilation=1,
        extra_layers=("3x3/2",),
        default_boxes=DefaultBoxConfig(
            sizes=(14.0, 24.0, 40.0, 60.0), max_ratios=(2, 2, 2), steps=(8.0, 16.0, 32.0)
        ),
    ),
    "refinedet": RefineDetConfig(
        backbone=BACKBONE, channels=8, fc6_dilation=1, size_factor=2.0, min_objectness=0.3
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def detector(request: pytest.FixtureRequest) -> tuple[Config, Any, Any]:
    """Config, and the jitted (loss sums, gradient norm) and detections of a batch."""
    config = Config(name="small", model=CONFIGS[request.param], loss=LossConfig(smooth_l1_beta=1.0))
    abstract = nnx.eval_shape(lambda: build_model(config.model, NUM_CLASSES, rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) == 4 else 1
        values = rng.normal(0, (2 / fan_in) ** 0.5 if fan_in > 1 else 0.1, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    params, rest = jax.tree.map(draw, (params, rest))

    @jax.jit
    def losses(batch: Batch) -> tuple:
        def total(params: nnx.State) -> tuple:
            model = nnx.merge(graphdef, params, rest)
            sums = detectors.loss_sums(model, batch, config, jax.random.key(0))
            return sums.total, sums

        gradient, sums = jax.grad(total, has_aux=True)(params)
        return sums, sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient)) ** 0.5

    @jax.jit
    def detect(params: nnx.State, batch: Batch) -> Any:
        return detectors.detect(nnx.merge(graphdef, params, rest), batch, config)

    return config, losses, functools.partial(detect, params)


def one_image(batch: Batch, row: int) -> Batch:
    """Its other rows only fill the batch: a batch of one would be another program to compile."""
    is_row = np.arange(len(batch.images)) == row
    return dataclasses.replace(
        batch,
        images=np.where(is_row[:, None, None, None], batch.images, 255 - batch.images),
        is_real=batch.is_real & is_row,
    )


def test_batches_equal_their_images_and_buckets_compile_once(detector: tuple) -> None:
    config, losses, detect = detector
    wide = random_batch(0, size=3, shape=(64, 80))
    wide.is_real[:] = [True, False, True]
    high = random_batch(1, size=3, shape=(80, 64))
    for batch in (wide, high, random_batch(2, size=3, shape=(64, 80))):
        assert detect(batch).valid.any()
    assert detect.func._cache_size() == 2

    together, norm = losses(wide)
    assert np.isfinite(norm)
    assert norm > 0
    assert float(together.num_positive) > 1
    losses(random_batch(2, size=3, shape=(64, 80)))
    assert losses._cache_size() == 1
    apart = [losses(one_image(wide, row))[0] for row in range(3)]
    assert float(apart[1].total) == 0
    np.testing.assert_allclose(together.num_positive, sum(sums.num_positive for sums in apart))
    if isinstance(config.model, SSDConfig):  # RefineDet divides by the counts of the whole batch
        np.testing.assert_allclose(together.total, sum(sums.total for sums in apart), rtol=1e-4)
    found = detect(wide)
    for row in range(3):
        alone = detect(one_image(wide, row))
        np.testing.assert_array_equal(found.valid[row], alone.valid[row])
        np.testing.assert_allclose(found.boxes[row], alone.boxes[row], atol=1e-2)
        np.testing.assert_allclose(found.scores[row], alone.scores[row], atol=1e-4)


def test_what_is_not_finite_is_marked(detector: tuple) -> None:
    """By whichever layer it comes in: one bias is enough."""
    _, _, detect = detector
    batch = random_batch(0, size=3, shape=(64, 80))
    params = detect.args[0]
    leaves, structure = jax.tree.flatten(params)
    for row in (0, len(leaves) - 1):
        broken = [
            leaf.at[..., 0].set(jnp.nan) if i == row else leaf for i, leaf in enumerate(leaves)
        ]
        found = detect.func(structure.unflatten(broken), batch)
        assert non_finite_images(found).tolist() == [0, 1, 2]
    assert non_finite_images(detect(batch)).tolist() == []


def test_refined_anchors_are_what_the_second_deltas_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detection with raw outputs of our choice, against NumPy."""
    model_config = dataclasses.replace(
        CONFIGS["refinedet"],
        postprocess=MultiBoxPostprocessConfig(
            score_threshold=0.0, topk_per_class=1000, nms_iou=1.0, max_detections=4000
        ),
    )
    config = Config(name="small", model=model_config)
    batch = random_batch(0, size=1)
    anchors = refinedet._anchors(model_config, batch)
    rng = np.random.default_rng(0)

    def draw(outputs: int) -> tuple:
        return tuple(
            jnp.asarray(rng.normal(0, 1, (1, len(a), outputs)), jnp.float32) for a in anchors
        )

    outputs = RefineDetPredictions(
        Predictions(draw(2), draw(4)), Predictions(draw(NUM_CLASSES + 1), draw(4))
    )
    found = refinedet.detect(lambda images, image_size: outputs, batch, config)

    def flat(levels: tuple) -> np.ndarray:
        return np.concatenate([level[0] for level in levels]).astype(np.float64)

    expected = []
    rows = zip(
        np.concatenate(anchors).astype(np.float64),
        flat(outputs.arm.cls_logits),
        flat(outputs.arm.deltas),
        flat(outputs.odm.cls_logits),
        flat(outputs.odm.deltas),
        strict=True,
    )
    for anchor, objectness, first, logits, second in rows:
        if softmax(objectness)[0] >= model_config.min_objectness:
            box = np.clip(decode(second, decode(first, anchor)), 0, 64)
            expected += [(*box, softmax(logits)[k], k) for k in range(NUM_CLASSES)]
    valid = np.asarray(found.valid[0])
    actual = np.column_stack(
        [np.asarray(a[0])[valid] for a in (found.boxes, found.scores, found.labels)]
    )
    total = NUM_CLASSES * sum(map(len, anchors))
    assert total / 3 < len(actual) == len(expected) < total
    expected.sort(key=lambda row: -row[4])
    np.testing.assert_allclose(actual, np.array(expected), rtol=1e-4, atol=1e-3)


def test_images_too_small_for_a_level_are_refused() -> None:
    config = Config(name="small", model=SSDConfig())
    with pytest.raises(ValueError, match=r"for images of 64 x 64 .* level 5"):
        detectors.loss_sums(lambda *_: None, random_batch(0), config, jax.random.key(0))
