"""Two-stage detectors as wholes: hard batches, one compile a shape, draws by the record."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax import detectors
from harmonic_jax.config import (
    AnchorConfig,
    BoxHeadConfig,
    Config,
    FasterRCNNConfig,
    LossConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    ResNetConfig,
    RoIAlignConfig,
    RoIPostprocessConfig,
    RPNConfig,
)
from harmonic_jax.detectors import build_model
from harmonic_jax.detectors.parts.objective import LossSums
from harmonic_jax.structures import Batch, GroundTruth, ObjectMasks

K = 3
SIDE = 64
MAX_OBJECTS = 12
MODEL = MaskRCNNConfig(
    backbone=ResNetConfig(depth=10, width=8, norm="frozen"),
    levels=(3, 5),
    channels=8,
    rpn=RPNConfig(
        anchors=AnchorConfig(size_factor=4.0, scales=(1.0,), ratios=(1.0,)),
        num_samples=16,
        topk_train=40,
        topk_eval=40,
        num_proposals_train=20,
        num_proposals_eval=20,
    ),
    roi_align=RoIAlignConfig(canonical_size=64.0),
    box_head=BoxHeadConfig(num_hidden=16, pool_size=3, num_samples=24),
    postprocess=RoIPostprocessConfig(score_threshold=0.0, max_detections=10),
    mask_head=MaskHeadConfig(num_convs=1, channels=8, pool_size=4),
)
CONFIG = Config(name="tiny", model=MODEL)


def make_batch(num_objects: tuple[int, ...], seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    b, g = len(num_objects), MAX_OBJECTS
    corner = rng.uniform(0, 40, (b, g, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 24, (b, g, 2))], -1)
    valid = np.arange(g) < np.array(num_objects)[:, None]
    masks = ObjectMasks(
        jnp.asarray(rng.choice(np.array([0, 255], np.uint8), (b, g, 14, 14))),
        jnp.asarray(boxes, jnp.float32),
    )
    return Batch(
        images=jnp.asarray(rng.integers(0, 256, (b, SIDE, SIDE, 3), dtype=np.uint8)),
        image_size=jnp.full((b, 2), float(SIDE)),
        scale=jnp.ones((b, 2)),
        record_index=jnp.arange(100, 100 + b, dtype=jnp.int32),
        is_real=jnp.ones(b, bool),
        ground_truth=GroundTruth(
            jnp.asarray(np.where(valid[..., None], boxes, np.nan), jnp.float32),
            jnp.asarray(rng.integers(0, K, (b, g)), jnp.int32),
            jnp.asarray(valid),
            masks,
        ),
    )


@functools.cache
def model_state(model: FasterRCNNConfig = MODEL) -> tuple[Any, nnx.State, nnx.State]:
    """A model filled by NumPy: jax would compile a kernel for the shape of every leaf."""
    rng = np.random.default_rng(0)
    abstract = nnx.eval_shape(lambda: build_model(model, K, rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(abstract, nnx.Param, ...)

    def fill(path: tuple, leaf: nnx.Variable) -> nnx.Variable:
        if path[-1] in ("scale", "var"):
            return leaf.replace(jnp.full(leaf.shape, 0.5 if path[-1] == "scale" else 1.0))
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1] == "kernel" else 0.05
        if path[-2] in ("objectness", "logits", "deltas", "output"):
            spread *= 0.2
        return leaf.replace(jnp.asarray(rng.normal(0, spread, leaf.shape), jnp.float32))

    return graphdef, nnx.map_state(fill, params), nnx.map_state(fill, rest)


def make_sums(config: Config = CONFIG) -> Any:
    """(params, batch, seed) -> ((total, sums), gradient of total)."""
    graphdef, _, rest = model_state(config.model)

    @jax.jit
    def run(params: nnx.State, batch: Batch, seed: int) -> tuple:
        def total(params: nnx.State) -> tuple[jax.Array, LossSums]:
            model = nnx.merge(graphdef, params, rest, copy=True)
            model.train()
            sums = detectors.loss_sums(model, batch, config, jax.random.key(seed))
            return sums.total, sums

        return jax.value_and_grad(total, has_aux=True)(params)

    return run


@functools.cache
def sums_of() -> Any:
    return make_sums()


def all_finite(tree: Any) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def test_every_parameter_is_trained_by_ordinary_batches() -> None:
    (_, sums), grads = sums_of()(model_state()[1], make_batch((5, 3)), 0)
    names = {"rpn_cls_loss", "rpn_box_loss", "cls_loss", "box_loss", "mask_loss"}
    assert names <= set(sums.normalized())
    assert float(sums.normalizer) == 2
    assert all_finite(grads)
    # Of the outputs of background nothing is trained but its logit.
    assert all(np.any(leaf[...]) for _, leaf in nnx.to_flat_state(grads))
    np.testing.assert_array_equal(grads["box_head"]["deltas"]["bias"][...][-4:], 0.0)
    np.testing.assert_array_equal(grads["mask_head"]["output"]["bias"][...][-1], 0.0)


def test_images_without_objects_train_background_alone() -> None:
    (_, sums), grads = sums_of()(model_state()[1], make_batch((0, 0)), 0)
    terms = {name: float(value) for name, value in sums.normalized().items()}
    assert float(sums.num_positive) == 0
    assert terms["rpn_box_loss"] == terms["box_loss"] == terms["mask_loss"] == 0
    np.testing.assert_allclose(terms["loss"], terms["rpn_cls_loss"] + terms["cls_loss"], rtol=1e-5)
    assert all_finite(grads)
    assert not np.any(grads["mask_head"]["output"]["kernel"][...])


def test_more_objects_than_may_be_sampled() -> None:
    (_, sums), grads = sums_of()(model_state()[1], make_batch((12, 12)), 0)
    assert float(sums.num_positive) == 2 * 24 * 0.25
    assert all_finite(grads)


def test_one_compilation_for_all_of_these() -> None:
    run = sums_of()
    run(model_state()[1], make_batch((5, 3)), 0)
    compiled = run._cache_size()
    for objects in ((4, 2), (0, 0), (12, 12)):
        run(model_state()[1], make_batch(objects, seed=7), 1)
    assert run._cache_size() == compiled


def test_draws_follow_the_record_not_the_place() -> None:
    batch = make_batch((12, 7))
    turned = jax.tree.map(lambda rows: rows[::-1], batch)
    params = model_state()[1]
    (total, _), _ = sums_of()(params, batch, 3)
    (again, _), _ = sums_of()(params, turned, 3)
    (other, _), _ = sums_of()(params, batch, 4)
    np.testing.assert_allclose(again, total, rtol=1e-5)
    assert abs(float(other) / float(total) - 1) > 1e-4
    elsewhere = dataclasses.replace(batch, record_index=batch.record_index + 1)
    (third, _), _ = sums_of()(params, elsewhere, 3)
    assert abs(float(third) / float(total) - 1) > 1e-4


def test_images_do_not_know_each_other() -> None:
    """Nor the ground truth, which detection does not look at."""
    graphdef, params, rest = model_state()

    @jax.jit
    def detect(params: nnx.State, batch: Batch) -> Any:
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.eval()
        return detectors.detect(model, batch, CONFIG)

    batch = make_batch((5, 2, 0))
    together = detect(params, batch)
    assert together.valid.any(axis=1).all()
    assert together.masks.shape == (3, 10, 8, 8)
    for i in range(3):
        others = jnp.where(np.arange(3)[:, None, None, None] == i, batch.images, 255 - batch.images)
        among = detect(params, dataclasses.replace(batch, images=others))
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b[i], atol=1e-4), among, together
        )
    other = dataclasses.replace(batch, ground_truth=make_batch((1, 1, 1), seed=9).ground_truth)
    jax.tree.map(np.testing.assert_array_equal, detect(params, other), together)
    # What is not finite is marked, whichever layer it comes from.
    assert not np.isnan(together.scores).any()
    leaves, structure = jax.tree.flatten(params)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for part in ("backbone", "rpn", "box_head", "mask_head"):
        row = next(i for i, path in enumerate(paths) if part in path)
        broken = [leaf * jnp.nan if i == row else leaf for i, leaf in enumerate(leaves)]
        found = detect(structure.unflatten(broken), batch)
        assert np.isnan(found.scores).all(), part


@pytest.mark.slow  # test_proposals.py shows it of the proposals alone
def test_the_second_stage_does_not_train_the_first_ones_boxes() -> None:
    """Proposals are constants: without RPN losses its deltas have no gradient."""
    graphdef, params, rest = model_state()
    batch = make_batch((5, 3))

    @jax.jit
    def gradient(params: nnx.State) -> nnx.State:
        def total(params: nnx.State) -> jax.Array:
            model = nnx.merge(graphdef, params, rest, copy=True)
            sums = detectors.loss_sums(model, batch, CONFIG, jax.random.key(0))
            return sum(sums.terms[name] for name in ("cls_loss", "box_loss", "mask_loss"))

        return jax.grad(total)(params)

    grads = gradient(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["rpn"]))
    assert np.any(grads["fpn"]["laterals"][0]["kernel"][...])


def adversarial(seed: int) -> Batch:
    """Boxes of a hundredth of a pixel, of a thousand times the image, and all at one place."""
    batch = make_batch((12, 12), seed)
    boxes = np.array(batch.ground_truth.boxes)
    boxes[0, :4, 2:] = boxes[0, :4, :2] + 0.01
    boxes[0, 4:8] = np.array([-64e3, -64e3, 64e3, 64e3])
    boxes[0, 8:] = boxes[0, 8]
    boxes[1, :6, 2] = boxes[1, :6, 0]  # empty
    boxes[1, 6:] = np.array([0, 0, SIDE, SIDE])
    masks = dataclasses.replace(batch.ground_truth.masks, frames=jnp.asarray(boxes))
    truth = dataclasses.replace(batch.ground_truth, boxes=jnp.asarray(boxes), masks=masks)
    return dataclasses.replace(batch, ground_truth=truth)


@pytest.mark.parametrize(
    "mode",
    ["through", *(pytest.param(m, marks=pytest.mark.slow) for m in ("stop", "cls_only"))],
)
def test_hardet_stays_finite_on_adversarial_targets(mode: str) -> None:
    """200 steps of plain descent at a rate that a recipe would call too high."""
    run = make_sums(dataclasses.replace(CONFIG, loss=LossConfig(factor_gradient=mode)))
    params = model_state()[1]
    batches = [adversarial(seed) for seed in range(5)]

    @jax.jit
    def descend(params: nnx.State, grads: nnx.State) -> tuple[nnx.State, jax.Array]:
        size = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
        rate = 0.02 / jnp.maximum(size, 1.0)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), size

    for step in range(200):
        (total, _), grads = run(params, batches[step % 5], step)
        params, size = descend(params, grads)
        assert np.isfinite(total), step
        assert np.isfinite(size), step
    assert all_finite(params)


def test_confidently_wrong_classes_stay_finite() -> None:
    params = jax.tree.map(lambda leaf: leaf, model_state()[1])
    params["box_head"]["logits"]["kernel"] = params["box_head"]["logits"]["kernel"].replace(
        params["box_head"]["logits"]["kernel"][...] * 1e4
    )
    params["box_head"]["deltas"]["kernel"] = params["box_head"]["deltas"]["kernel"].replace(
        params["box_head"]["deltas"]["kernel"][...] * 1e4
    )
    (total, _), grads = sums_of()(params, adversarial(0), 0)
    assert np.isfinite(total)
    assert all_finite(grads)
