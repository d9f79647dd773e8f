"""Every detector as a whole: shapes, buckets, batches, draws, what is marked, what is trained."""

import dataclasses
from typing import Any

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

VGG, ATROUS = c.VGGConfig(width=4), tiny.SSD.backbone
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


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: c.RetinaNetConfig(backbone=ATROUS), "model.backbone.atrous is True; .*stride 32"),
        (lambda: c.FasterRCNNConfig(backbone=ATROUS), "model.backbone.atrous is True; .*stride 32"),
        (lambda: c.RefineDetConfig(backbone=ATROUS), "model.backbone.atrous is True; .*stride 32"),
        (
            lambda: c.SSDConfig(backbone=c.ResNetConfig()),
            "model.extra_layers is .* 3 layers: with th",
        ),
        (lambda: c.RetinaNetConfig(levels=(2, 7)), r"model.levels is \(2, 7\)"),
        (lambda: c.RetinaNetConfig(head_norm="group", channels=12), "model.channels is 12"),
        (lambda: c.FasterRCNNConfig(levels=(1, 5)), r"model.levels is \(1, 5\)"),
        (lambda: c.FasterRCNNConfig(channels=12, fpn_norm="group"), "model.channels is 12"),
        (lambda: c.RPNConfig(num_samples=0), "rpn.num_samples is 0"),
        (lambda: c.BoxHeadConfig(positive_fraction=0.0), "box_head.positive_fraction is 0.0"),
        (lambda: c.BoxHeadConfig(delta_weights=(1.0, 1.0, 0.0, 1.0)), "box_head.delta_weights is"),
        (lambda: c.BoxHeadConfig(norm="batch"), "box_head.norm is 'batch'; .* two_fc"),
        (lambda: c.MaskHeadConfig(channels=12, norm="group"), "mask_head.channels is 12"),
        (lambda: c.AnchorConfig(scales=()), "anchors.scales"),
    ],
)
def test_settings_name_what_is_wrong(make: Any, words: str) -> None:
    with pytest.raises(c.ConfigError, match=words):
        make()


def test_num_classes_is_checked() -> None:
    with pytest.raises(ValueError, match="num_classes is 0"):
        detectors.build_model(tiny.RETINANET, 0, rngs=nnx.Rngs(0))


def test_something_else_is_no_detector() -> None:
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


@pytest.mark.parametrize("name", COMPILED)
def test_what_is_not_finite_is_marked(name: str) -> None:
    """By whichever part it comes in: one leaf is enough."""
    detect, params, batch = tiny.detection(name), params_of(name), tiny.make_batch((5, 2, 0))
    assert non_finite_images(detect(params, batch)).tolist() == []
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    leaves, structure = jax.tree.flatten(params)
    for part in params:
        row = max(i for i, path in enumerate(paths) if path.startswith(f"['{part}']"))
        broken = [leaf * jnp.nan if i == row else leaf for i, leaf in enumerate(leaves)]
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


def test_of_the_outputs_of_background_its_logit_alone_is_trained() -> None:
    (_, sums), grads = tiny.training("mask_rcnn")(
        params_of("mask_rcnn"), tiny.make_batch((5, 3, 2)), 0
    )
    names = {"rpn_cls_loss", "rpn_box_loss", "cls_loss", "box_loss", "mask_loss"}
    assert names <= set(sums.normalized())
    np.testing.assert_array_equal(grads["box_head"]["deltas"]["bias"][...][-4:], 0.0)
    np.testing.assert_array_equal(grads["mask_head"]["output"]["bias"][...][-1], 0.0)


def test_two_stages_without_objects_train_background_alone() -> None:
    (_, sums), grads = tiny.training("mask_rcnn")(
        params_of("mask_rcnn"), tiny.make_batch((0, 0, 0)), 0
    )
    terms = {name: float(value) for name, value in sums.normalized().items()}
    assert float(sums.num_positive) == 0
    assert terms["rpn_box_loss"] == terms["box_loss"] == terms["mask_loss"] == 0
    np.testing.assert_allclose(terms["loss"], terms["rpn_cls_loss"] + terms["cls_loss"], rtol=1e-5)
    assert not np.any(grads["mask_head"]["output"]["kernel"][...])


def test_more_objects_than_may_be_sampled() -> None:
    (_, sums), _ = tiny.training("mask_rcnn")(
        params_of("mask_rcnn"), tiny.make_batch((12, 12, 12)), 0
    )
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


@pytest.mark.slow  # test_rpn.py shows it of the proposals alone
def test_the_second_stage_does_not_train_the_first_ones_boxes() -> None:
    """Proposals are constants: without RPN losses its deltas have no gradient."""
    graphdef, params, rest = tiny.random_state(tiny.MASK_RCNN)
    batch = tiny.make_batch((5, 3))

    @jax.jit
    @jax.grad
    def gradient(params: nnx.State) -> jax.Array:
        model = nnx.merge(graphdef, params, rest, copy=True)
        sums = detectors.loss_sums(model, batch, c.LossConfig(), jax.random.key(0))
        return sum(sums.terms[name] for name in ("cls_loss", "box_loss", "mask_loss"))

    grads = gradient(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["rpn"]))
    assert np.any(grads["fpn"]["laterals"][0]["kernel"][...])


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


@pytest.mark.parametrize(
    "mode", ["through", *(pytest.param(m, marks=pytest.mark.slow) for m in ("stop", "cls_only"))]
)
def test_hardet_stays_finite_on_adversarial_targets(mode: str) -> None:
    """200 steps of plain descent at a rate that a recipe would call too high."""
    run, params = (
        tiny.training("mask_rcnn", c.LossConfig(factor_gradient=mode)),
        params_of("mask_rcnn"),
    )
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
