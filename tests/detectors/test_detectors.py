"""Every detector as a whole: shapes, buckets, batches, draws, what is marked, what is trained."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from harmonic_jax import config as c
from harmonic_jax import detectors
from harmonic_jax.detectors.parts.selection import non_finite_images
from harmonic_jax.pretrained.models import DETECTORS
from harmonic_jax.structures import Batch
from tests.detectors import tiny
from tests.detectors.tiny import K

# Faster R-CNN's program is the first part of Mask R-CNN's; torchvision's parity runs it as well.
COMPILED = [name for name in tiny.MODELS if name != "faster_rcnn"]
SHAPE = (64, 64)


def params_of(name: str) -> nnx.State:
    return tiny.random_state(tiny.MODELS[name])[1]


# --- Any detector on any backbone that has the maps it reads --------------------------------------

VGG = c.VGGConfig(width=4)
FOUR_LEVELS = dataclasses.replace(
    tiny.SSD.default_boxes,
    sizes=(16.0, 28.0, 44.0, 60.0, 76.0),
    max_ratios=(2, 3, 2, 1),
    steps=(8.0, 16.0, 0.0, 0.0),
)
VARIANTS = [
    *(("retinanet", {"backbone": VGG, "levels": levels}) for levels in ((3, 5), (3, 7), (4, 8))),
    ("retinanet", {"extra_levels_from": "p5", "levels": (3, 7)}),
    ("ssd", {"extra_layers": ("3x3/2", "4x4"), "default_boxes": FOUR_LEVELS}),
    ("ssd", {"backbone": VGG, "default_boxes": FOUR_LEVELS}),
    ("ssd", {"backbone": tiny.RESNET, "default_boxes": FOUR_LEVELS}),
    ("refinedet", {"backbone": VGG, "deconv_size": 2}),
    ("refinedet", {"backbone": tiny.RESNET}),
    *(("mask_rcnn", {"backbone": VGG, "levels": levels}) for levels in ((2, 5), (2, 6), (3, 7))),
    ("faster_rcnn", {"backbone": VGG, "fpn_norm": "group"}),
    ("rtdetr", {"backbone": VGG, "channels": 16, "expansion": 1.0}),
    ("rtdetr", {"backbone": dataclasses.replace(tiny.RESNET, variant="d"), "num_queries": 500}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_levels_are_those_of_the_anchors(name: str, changes: dict) -> None:
    """Of images of any size: else boxes could not be decoded."""
    model = dataclasses.replace(tiny.MODELS[name], **changes)
    made = nnx.eval_shape(lambda: detectors.build_model(model, K, rngs=nnx.Rngs(0)))
    batch = jax.eval_shape(lambda: tiny.make_batch((2, 1), shape=(109, 77)))
    found = nnx.eval_shape(detectors.detect, made, batch)
    assert found.boxes.shape == (2, model.postprocess.max_detections, 4)
    assert (found.masks is None) == (name != "mask_rcnn")


def test_what_is_no_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes is 0"):
        detectors.build_model(tiny.RETINANET, 0, rngs=nnx.Rngs(0))
    batch, linear = tiny.make_batch((1,)), nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="model is a Linear; it must be a detector"):
        detectors.detect(linear, batch)
    with pytest.raises(TypeError, match="model is a Linear; it must be a detector"):
        detectors.loss_sums(linear, batch, c.LossConfig(), jax.random.key(0))


def unfrozen(name: str) -> c.ModelConfig:
    model = DETECTORS[name].model
    backbone = dataclasses.replace(model.backbone, frozen_stages=0)
    return dataclasses.replace(model, backbone=backbone)


@pytest.mark.parametrize(
    ("model", "num_classes", "expected"),
    # torchvision's documented totals; constants of frozen norms are no parameters.
    [
        (unfrozen("retinanet_resnet50_fpn"), 91, 34_014_999),
        (unfrozen("retinanet_resnet50_fpn_v2"), 91, 38_198_935),
        (unfrozen("fasterrcnn_resnet50_fpn"), 90, 41_755_286),
        (unfrozen("fasterrcnn_resnet50_fpn_v2"), 90, 43_712_278),
        (unfrozen("maskrcnn_resnet50_fpn"), 90, 44_401_393),
        (unfrozen("maskrcnn_resnet50_fpn_v2"), 90, 46_359_409),
        (c.SSDConfig(), 20, 26_285_486),
    ],
)
def test_published_numbers_of_parameters(model, num_classes, expected) -> None:
    params = tiny.abstract_state(model, num_classes)[1]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


# --- Batches -------------------------------------------------------------------------------------


def others_inverted(batch: Batch, row: int) -> Batch:
    """Its other rows hold other images: a batch of one would be another program to compile."""
    is_row = np.arange(len(batch.images)) == row
    images = jnp.where(is_row[:, None, None, None], batch.images, 255 - batch.images)
    return dataclasses.replace(batch, images=images, is_real=batch.is_real & is_row)


@pytest.mark.parametrize("name", COMPILED)
def test_detections_of_an_image_are_its_own(name: str) -> None:
    """They depend neither on other images, nor on ground truth, nor on what the padding holds."""
    detect, params = tiny.detection(name), params_of(name)
    batch = tiny.make_batch((5, 2, 0))
    found = detect(params, batch)
    assert found.valid.any(axis=1).all()
    assert (found.masks is None) == (name != "mask_rcnn")
    assert found.masks is None or found.masks.shape == (3, 10, 8, 8)
    among = detect(params, others_inverted(batch, 1))
    tiny.assert_close(
        jax.tree.map(lambda x: x[1], among), jax.tree.map(lambda x: x[1], found), atol=1e-2
    )
    np.testing.assert_allclose(among.scores[1], found.scores[1], atol=1e-4)
    truth = tiny.make_batch((1, 1, 1), seed=9).ground_truth
    tiny.assert_same(detect(params, dataclasses.replace(batch, ground_truth=truth)), found)
    padded = dataclasses.replace(batch, image_size=jnp.array([[50.0, 40.0], SHAPE, SHAPE]))
    outside = batch.images.at[0, 50:].set(7).at[0, :, 40:].set(250)
    expected = detect(params, padded)
    tiny.assert_same(detect(params, dataclasses.replace(padded, images=outside)), expected)
    assert not np.array_equal(found.scores[0], expected.scores[0])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", COMPILED)
def test_what_is_not_finite_is_marked(name: str, number: float) -> None:
    """By whichever part it comes in: one leaf is enough."""
    detect, params, batch = tiny.detection(name), params_of(name), tiny.make_batch((5, 2, 0))
    assert non_finite_images(detect(params, batch)).tolist() == []
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    leaves, structure = jax.tree.flatten(params)
    for part in set(params) - {"classes"}:  # of RT-DETR, which training alone looks at
        row = max(i for i, path in enumerate(paths) if path.startswith(f"['{part}']"))
        broken = [leaf + number if i == row else leaf for i, leaf in enumerate(leaves)]
        found = detect(structure.unflatten(broken), batch)
        assert non_finite_images(found).tolist() == [0, 1, 2], part


def test_a_bucket_compiles_once() -> None:
    detect = tiny.detection("ssd")
    for shape in ((64, 64), (80, 64), (64, 64), (80, 64)):
        detect(params_of("ssd"), tiny.make_batch((3, 1, 0), shape=shape))
    assert detect._cache_size() == 2


@pytest.mark.parametrize("name", COMPILED)
def test_losses_of_a_batch(name: str) -> None:
    """Every parameter is trained, but with hard negatives those of levels where none is; images sum
    up; those that are not real count nowhere."""
    run, params = tiny.training(name), params_of(name)
    batch = dataclasses.replace(tiny.make_batch((5, 3, 2)), is_real=jnp.array([True, False, True]))
    (total, sums), grads = run(params, batch, 0)
    tiny.assert_all_finite((total, grads))
    assert float(sums.num_positive) > 1
    idle = [path for path, leaf in nnx.to_flat_state(grads) if not np.any(leaf[...])]
    assert not [path for path in idle if path[0] == "backbone"]
    assert not idle or name in ("ssd", "refinedet")
    apart = [run(params, others_inverted(batch, row), 0)[0][1] for row in range(3)]
    assert float(apart[1].total) == 0
    np.testing.assert_allclose(sums.num_positive, sum(own.num_positive for own in apart))
    if name in ("retinanet", "ssd"):  # the others divide by the counts of the whole batch
        np.testing.assert_allclose(sums.total, sum(own.total for own in apart), rtol=1e-4)
    else:
        assert float(sums.normalizer) == 2
    for objects in ((0, 0, 0), (12, 12, 12)):
        tiny.assert_all_finite(run(params, tiny.make_batch(objects, seed=7), 1))
    assert run._cache_size() == 1


# --- A fault of XLA on CPUs ----------------------------------------------------------------------


def summed_products(program: str) -> list[str]:
    """What YNNPACK is given whole, of a compiled program, and has a product and a sum in it."""
    bodies = dict(
        re.findall(r"^%?([\w.-]+) \([^\n]*\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL)
    )
    names = re.findall(r"fusion\([^\n]*calls=%?([\w.-]+)[^\n]*__ynn_fusion", program)
    return [
        bodies[name] for name in names if " dot(" in bodies[name] and " reduce(" in bodies[name]
    ]


@pytest.fixture(scope="module")
def _faulty() -> None:
    cube = jnp.asarray(np.random.default_rng(0).standard_normal((5, 60, 60)), jnp.float32)

    def total(cube: jax.Array) -> jax.Array:
        return jnp.sum((cube @ jnp.full((5, 60, 60), 2.5)) * cube, axis=(1, 2))

    program = jax.jit(total).lower(cube).compile()
    if np.allclose(program(cube), total(cube), rtol=1e-3):
        pytest.skip("this jaxlib sums products as it should")
    assert summed_products(program.as_text())


@pytest.mark.usefixtures("_faulty")
@pytest.mark.parametrize("name", COMPILED)
def test_no_product_is_summed_in_the_fusion_that_is_wrong(name: str) -> None:
    """docs/losses.md, "Wrong sums on processors"."""
    params, batch = params_of(name), tiny.make_batch((5, 2, 0))
    programs = (
        tiny.training(name).lower(params, batch, 0),
        tiny.detection(name).lower(params, batch),
    )
    for program in programs:
        text = program.compile().as_text()
        assert "__ynn_fusion" in text
        assert not summed_products(text)


def test_what_two_stages_train() -> None:
    """Of the outputs of background its logit alone; without objects nothing else; and no more
    positives than may be sampled."""
    run, params = tiny.training("mask_rcnn"), params_of("mask_rcnn")
    (_, sums), grads = run(params, tiny.make_batch((5, 3, 2)), 0)
    names = {"rpn_cls_loss", "rpn_box_loss", "cls_loss", "box_loss", "mask_loss"}
    assert names <= set(sums.normalized())
    np.testing.assert_array_equal(grads["box_head"]["deltas"]["bias"][...][-4:], 0.0)
    np.testing.assert_array_equal(grads["mask_head"]["output"]["bias"][...][-1], 0.0)

    (_, sums), grads = run(params, tiny.make_batch((0, 0, 0)), 0)
    terms = {name: float(value) for name, value in sums.normalized().items()}
    assert float(sums.num_positive) == 0
    assert terms["rpn_box_loss"] == terms["box_loss"] == terms["mask_loss"] == 0
    np.testing.assert_allclose(terms["loss"], terms["rpn_cls_loss"] + terms["cls_loss"], rtol=1e-5)
    assert not np.any(grads["mask_head"]["output"]["kernel"][...])

    (_, sums), _ = run(params, tiny.make_batch((12, 12, 12)), 0)
    assert float(sums.num_positive) == 3 * 24 * 0.25


def test_draws_follow_the_record_not_the_place() -> None:
    batch, params, run = (
        tiny.make_batch((12, 7, 9)),
        params_of("mask_rcnn"),
        tiny.training("mask_rcnn"),
    )
    turned = jax.tree.map(lambda rows: rows[::-1], batch)
    elsewhere = dataclasses.replace(batch, record_index=batch.record_index + 1)
    total, again, other, third = (
        float(run(params, own, seed)[0][0])
        for own, seed in ((batch, 3), (turned, 3), (batch, 4), (elsewhere, 3))
    )
    np.testing.assert_allclose(again, total, rtol=1e-5)
    assert abs(other / total - 1) > 1e-4
    assert abs(third / total - 1) > 1e-4


def adversarial(seed: int) -> Batch:
    """Boxes of a hundredth of a pixel, of a thousand times the image, and all at one place."""
    batch = tiny.make_batch((12, 12, 12), seed)
    boxes = np.array(batch.ground_truth.boxes)
    boxes[0, :4, 2:] = boxes[0, :4, :2] + 0.01
    boxes[0, 4:8] = np.array([-64e3, -64e3, 64e3, 64e3])
    boxes[0, 8:] = boxes[0, 8]
    boxes[1, :6, 2] = boxes[1, :6, 0]  # empty
    boxes[1, 6:] = np.array([0, 0, *SHAPE])
    masks = dataclasses.replace(batch.ground_truth.masks, frames=jnp.asarray(boxes))
    truth = dataclasses.replace(batch.ground_truth, boxes=jnp.asarray(boxes), masks=masks)
    return dataclasses.replace(batch, ground_truth=truth)


def test_hardet_stays_finite_on_adversarial_targets() -> None:
    """200 steps of plain descent at a rate that a recipe would call too high."""
    run, params = tiny.training("mask_rcnn"), params_of("mask_rcnn")
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
    tiny.assert_all_finite(params)


def test_confidently_wrong_classes_stay_finite() -> None:
    params = jax.tree.map(lambda leaf: leaf, params_of("mask_rcnn"))
    for layer in ("logits", "deltas"):
        kernel = params["box_head"][layer]["kernel"]
        params["box_head"][layer]["kernel"] = kernel.replace(kernel[...] * 1e4)
    tiny.assert_all_finite(tiny.training("mask_rcnn")(params, adversarial(0), 0))


# --- What flax must be able to do ----------------------------------------------------------------

NORMED = dataclasses.replace(
    tiny.RETINANET, backbone=c.ResNetConfig(depth=10, width=8, norm="batch", frozen_stages=1)
)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


@nnx.set_graph_mode(False)
@nnx.set_graph_updates(False)
def test_a_step_under_plain_jit() -> None:
    """A pure init and a pure step, as a training loop writes them."""
    graphdef, graphdefs = tiny.abstract_state(NORMED)[0], []

    def init(key: jax.Array) -> tuple[nnx.State, nnx.State]:
        model = detectors.build_model(NORMED, K, rngs=nnx.Rngs(key))
        graphdef, params, others = nnx.split(model, nnx.Param, ...)
        graphdefs.append(graphdef)
        return params, others

    def step(params: nnx.State, others: nnx.State, images: jax.Array) -> tuple:
        def loss(params: nnx.State) -> tuple:
            model = nnx.merge(graphdef, params, others, copy=True)
            model.train()
            predictions = model(images)
            outputs = predictions.cls_logits + predictions.deltas
            return sum((x**2).mean() for x in outputs), nnx.state(model, nnx.Not(nnx.Param))

        return jax.value_and_grad(loss, has_aux=True)(params)

    params, others = jax.jit(init)(jax.random.key(0))
    (_, new_others), grads = jax.jit(step)(params, others, IMAGES)
    assert graphdefs == [graphdef]  # of eval_shape, and of the initialised model
    # The score of every class starts at the prior.
    bias = np.asarray(params["cls_head"]["output"]["bias"][...], np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), NORMED.prior, rtol=1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert jax.tree.structure(new_others) == jax.tree.structure(others)
    old, new = nnx.to_flat_state(others), nnx.to_flat_state(new_others)
    for (path, before), (_, after) in zip(old, new, strict=True):
        moved = not np.array_equal(before[...], after[...])
        assert moved == isinstance(before, nnx.BatchStat), path
    tiny.assert_all_finite(grads)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_bfloat16_stays_close_and_gives_float32() -> None:
    exact_def, params, others = tiny.random_state(NORMED)
    model = nnx.eval_shape(
        lambda: detectors.build_model(NORMED, K, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    rounded_def = nnx.graphdef(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    exact, rounded = (
        jax.jit(lambda p, o, x, g=graphdef: nnx.merge(g, p, o)(x))(params, others, IMAGES)
        for graphdef in (exact_def, rounded_def)
    )
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert b.dtype == jnp.float32
        error = np.abs(np.asarray(b) - np.asarray(a)).mean()
        assert 0 < error < 0.05 * np.asarray(a).std()


def test_ground_truth_without_room_is_refused() -> None:
    batch = tiny.make_batch((1,))
    truth = jax.tree.map(lambda rows: rows[:, :0], batch.ground_truth)
    with pytest.raises(ValueError, match="the ground truth has room for no object"):
        detectors.loss_sums(
            nnx.Module(), dataclasses.replace(batch, ground_truth=truth), c.LossConfig(), tiny.KEY
        )
