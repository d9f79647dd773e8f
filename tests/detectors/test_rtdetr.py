"""RT-DETR: matching, noised objects, who sees whom, and its losses as a float64 loop."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.optimize import linear_sum_assignment

from harmonic_jax import config as c
from harmonic_jax.detectors import rtdetr
from harmonic_jax.detectors.parts import queries as q
from harmonic_jax.structures import GroundTruth
from tests.detectors import tiny
from tests.detectors.tiny import K
from tests.losses import reference as plain

SHAPE = (64, 96)
VARIFOCAL = c.LossConfig(hardet=False, cls_loss="varifocal", box_weight=1.5)
HARDET = dataclasses.replace(VARIFOCAL, hardet=True)


def found(rng: np.random.Generator, *shape: int) -> q.Queries:
    logits = rng.normal(-1, 2, (*shape, K))
    boxes = np.concatenate(
        [rng.uniform(0.2, 0.8, (*shape, 2)), rng.uniform(0.1, 0.5, (*shape, 2))], -1
    )
    return q.Queries(jnp.float32(logits), jnp.float32(boxes))


def in_parts(boxes: Any) -> np.ndarray:
    boxes = np.asarray(boxes, np.float64) / np.array([SHAPE[1], SHAPE[0]] * 2)
    return np.concatenate(
        [(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1
    )


def corners(boxes: Any) -> np.ndarray:
    boxes = np.asarray(boxes, np.float64)
    return np.concatenate([boxes[:2] - boxes[2:] / 2, boxes[:2] + boxes[2:] / 2])


def giou(a: np.ndarray, b: np.ndarray) -> float:
    return float(plain.giou_loss(a, b))


def box_loss(box: np.ndarray, target: np.ndarray) -> float:
    return 5 * np.abs(box - target).sum() + 2 * giou(corners(box), corners(target))


def assignment(logits: np.ndarray, boxes: np.ndarray, targets: np.ndarray, labels: np.ndarray):
    """(query, object) pairs of an image, with SciPy."""
    p = 1 / (1 + np.exp(-logits[:, labels]))
    cost = 2 * (0.25 * (1 - p) ** 2 * -np.log(p) - 0.75 * p**2 * -np.log(1 - p))
    cost += [[box_loss(box, target) for target in targets] for box in boxes]
    return list(zip(*linear_sum_assignment(cost), strict=True))


def objects_of(truth: GroundTruth, image: int) -> tuple[np.ndarray, np.ndarray]:
    boxes, labels = tiny.objects_of(truth, image)
    return in_parts(boxes), labels


@pytest.mark.parametrize("seed", range(4))
def test_matching_equals_scipy(seed: int) -> None:
    """Of padded objects, in any rows; without objects all are negatives."""
    rng = np.random.default_rng(seed)
    truth = tiny.random_truth(rng, (5, 3, 0))
    order = rng.permutation(5)
    truth = jax.tree.map(lambda a: None if a is None else a[:, order], truth)
    layer = found(rng, 3, 12)
    objects = jnp.nan_to_num(jnp.float32(in_parts(truth.boxes)))
    aims = jax.jit(jax.vmap(q.match_queries))(layer, objects, truth)
    assert aims.is_counted.all()
    for image in range(3):
        targets, labels = objects_of(truth, image)
        logits, boxes = (np.asarray(a[image], np.float64) for a in (layer.cls_logits, layer.boxes))
        pairs = assignment(logits, boxes, targets, labels) if len(labels) else []
        expected = np.full(12, K)
        for row, g in pairs:
            expected[row] = labels[g]
            np.testing.assert_allclose(aims.boxes[image, row], targets[g], atol=1e-6)
        np.testing.assert_array_equal(aims.labels[image], expected)
        np.testing.assert_array_equal(aims.is_positive[image], expected < K)


def test_an_output_that_is_nan_is_matched_last() -> None:
    truth = tiny.random_truth(np.random.default_rng(0), (3,))
    truth = jax.tree.map(lambda a: a[0], truth)
    layer = jax.tree.map(lambda a: a.at[4].set(jnp.nan), found(np.random.default_rng(1), 6))
    aims = q.match_queries(layer, jnp.nan_to_num(jnp.float32(in_parts(truth.boxes))), truth)
    assert int(aims.is_positive.sum()) == 3
    assert not aims.is_positive[4]


# --- Noised objects ------------------------------------------------------------------------------

NOISE = q.DenoisingConfig(num_objects=20)


@pytest.mark.parametrize(("num_objects", "groups"), [(0, 0), (1, 20), (3, 6), (5, 4)])
def test_noised_objects(num_objects: int, groups: int) -> None:
    """As many groups as fit, each with every object twice: near enough, and too far away."""
    truth = jax.tree.map(
        lambda a: a[0], tiny.random_truth(np.random.default_rng(2), (num_objects,))
    )
    truth = jax.tree.map(lambda a: None if a is None else a[::-1], truth)  # the last rows are real
    objects = jnp.nan_to_num(jnp.float32(in_parts(truth.boxes)))
    aims, given, boxes, group = q.noised_objects(
        jax.random.key(5), objects, truth, NOISE, num_classes=K
    )
    count = 2 * num_objects * groups
    assert len(group) == 40
    np.testing.assert_array_equal(aims.is_counted, np.arange(40) < count)
    np.testing.assert_array_equal(group[:count], np.repeat(np.arange(groups), 2 * num_objects))
    assert (np.asarray(group[count:]) == -1).all()
    assert (np.asarray(given[count:]) == K).all()
    assert int(aims.is_positive.sum()) == count // 2
    rows = [sorted(np.flatnonzero(truth.valid))[i % num_objects] for i in range(count)]
    for i, row in enumerate(rows):
        is_positive = i % (2 * num_objects) < num_objects
        assert bool(aims.is_positive[i]) == is_positive
        assert int(aims.labels[i]) == (int(truth.labels[row]) if is_positive else K)
        inside = np.clip(corners(objects[row]), 0, 1)
        moved = np.abs(corners(boxes[i]) - inside) / np.tile(objects[row][2:] / 2, 2)
        assert (moved <= (1 if is_positive else 2) + 1e-3).all()


def test_noise_is_as_the_settings_say() -> None:
    truth = jax.tree.map(lambda a: a[0], tiny.random_truth(np.random.default_rng(2), (2,)))
    # In the middle, where no border cuts the noise.
    objects = jnp.tile(jnp.array([[0.5, 0.4, 0.2, 0.3], [0.4, 0.6, 0.3, 0.1]]), (3, 1))[:5]
    many = dataclasses.replace(NOISE, num_objects=4000)
    aims, given, boxes, _ = q.noised_objects(jax.random.key(0), objects, truth, many, num_classes=K)
    rows = np.arange(8000) % 2
    changed = np.asarray(given) != np.asarray(truth.labels)[rows]
    # A quarter is drawn anew, of which a third keeps its class by chance.
    assert abs(changed.mean() - 0.25 * (K - 1) / K) < 0.02
    half = np.asarray(objects)[rows, 2:] / 2
    low = np.asarray(boxes[:, :2] - boxes[:, 2:] / 2) - np.asarray(objects[rows, :2] - half)
    moved = np.abs(low / half)
    is_positive = np.asarray(aims.is_positive)
    assert moved[is_positive].max() <= 1.001
    assert abs(moved[is_positive].mean() - 0.5) < 0.02
    assert moved[~is_positive].min() >= 0.999
    none = dataclasses.replace(NOISE, label_noise=0.0, box_noise=0.0)
    aims, given, boxes, _ = q.noised_objects(jax.random.key(0), objects, truth, none, num_classes=K)
    np.testing.assert_array_equal(given, np.asarray(truth.labels)[rows[:40]])
    np.testing.assert_allclose(boxes, np.asarray(objects)[rows[:40]], atol=1e-6)


def test_nobody_sees_what_it_must_not() -> None:
    """What other groups and empty slots hold changes nothing; queries see no noised object."""
    graphdef, params, rest = tiny.random_state(tiny.RTDETR)
    model = nnx.merge(graphdef, params, rest)
    model.eval()
    rng = np.random.default_rng(0)
    group = jnp.array([0, 0, 1, 1, -1])
    features = jnp.float32(rng.normal(size=(1, 9, 16)))
    boxes = found(rng, 1, 9).boxes
    memory = [jnp.float32(rng.normal(size=(1, side, side, 16))) for side in (8, 4, 2)]
    mask = q.who_sees_whom(group, 4)[None]

    @jax.jit
    def decode(features: jax.Array) -> jax.Array:
        return model.decode(features, boxes, memory, mask)[-1].cls_logits[0]

    before = decode(features)
    sees = np.zeros((9, 9), bool)
    for other in range(9):
        after = decode(features.at[0, other].add(1.0))
        sees[:, other] = np.abs(after - before).max(axis=-1) > 1e-6
    expected = np.asarray(mask[0])
    np.testing.assert_array_equal(sees, expected)
    np.testing.assert_array_equal(expected[5:, :5], False)
    np.testing.assert_array_equal(expected[:, 4], np.arange(9) == 4)


# --- Losses --------------------------------------------------------------------------------------


def loop(layers: q.Queries, truth: GroundTruth, is_real: np.ndarray, loss: c.LossConfig) -> float:
    total, num_objects = 0.0, 0
    for image in np.flatnonzero(is_real):
        targets, labels = objects_of(truth, image)
        num_objects += len(labels)
        for layer in range(layers.boxes.shape[0]):
            logits, boxes = (
                np.asarray(a[layer, image], np.float64) for a in (layers.cls_logits, layers.boxes)
            )
            own = dict(assignment(logits, boxes, targets, labels)) if len(labels) else {}
            for row in range(len(boxes)):
                p = 1 / (1 + np.exp(-logits[row]))
                cls = 0.75 * p**2 * -np.log(1 - p)
                if row not in own:
                    total += loss.cls_weight * cls.sum()
                    continue
                target, label = targets[own[row]], labels[own[row]]
                iou = plain.iou(corners(boxes[row]), corners(target))
                cls[label] = iou * plain.bce(p[label], iou)
                localized = box_loss(boxes[row], target)
                if not loss.hardet:
                    total += loss.cls_weight * cls.sum() + loss.box_weight * localized
                    continue
                parts = {
                    "cls_loss": cls.sum(), "smooth_l1": localized, "prob": p[label],
                    "entropy": plain.bce(p[label], p[label]), "iou": iou,
                }  # fmt: skip
                names = ("alpha", "gamma", "margin", "cls_weight", "box_weight")
                total += float(plain.hardet(parts, **{name: getattr(loss, name) for name in names}))
    return total / max(num_objects, 1)


@pytest.mark.parametrize("loss", [VARIFOCAL, HARDET], ids=["varifocal", "hardet"])
def test_loss_equals_a_loop(loss: c.LossConfig) -> None:
    """Of two images, of the one that is real, and of images without objects."""
    rng = np.random.default_rng(3)
    layers, truth = found(rng, 2, 2, 10), tiny.random_truth(rng, (4, 3))
    without = dataclasses.replace(truth, valid=jnp.zeros_like(truth.valid))

    @jax.jit
    def run(layers: q.Queries, truth: GroundTruth, is_real: jax.Array) -> Any:
        objects = jnp.nan_to_num(q.to_parts(truth.boxes, SHAPE))
        aims = jax.vmap(jax.vmap(q.match_queries), (0, None, None))(layers, objects, truth)
        sums = rtdetr.layer_sums(layers, aims, is_real=is_real, loss=loss, shape=SHAPE)
        return sums.normalized()["loss"], sums.num_positive

    for own, is_real, count in (
        (truth, [True, True], 7),
        (truth, [False, True], 3),
        (without, [True, True], 0),
    ):
        value, num_positive = run(layers, own, jnp.array(is_real))
        assert float(num_positive) == count
        np.testing.assert_allclose(value, loop(layers, own, np.array(is_real), loss), rtol=3e-5)


def test_hardet_of_the_last_layer_alone() -> None:
    """The other layers then have the plain losses; noised objects have them always."""
    graphdef, params, rest = tiny.random_state(tiny.RTDETR)
    batch = tiny.make_batch((5, 2))

    def total(layers: str, loss: c.LossConfig) -> dict[str, float]:
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.eval()
        model.config = dataclasses.replace(tiny.RTDETR, hardet_layers=layers)
        sums = jax.jit(lambda key: rtdetr.loss_sums(model, batch, loss, key, None))(tiny.KEY)
        return {name: float(value) for name, value in sums.normalized().items()}

    none, last, every = (
        total("all", VARIFOCAL), total("last", HARDET), total("all", HARDET)
    )  # fmt: skip
    assert none["loss"] < last["loss"] < every["loss"]
    for name in ("cls_loss", "box_loss", "denoising_loss"):
        np.testing.assert_allclose([last[name], every[name]], none[name], rtol=1e-5)
    parts = ("cls_loss", "box_loss", "denoising_loss")
    np.testing.assert_allclose(none["loss"], sum(none[name] for name in parts), rtol=1e-5)
    # Of the last layer, and a mean over the encoder and two layers.
    assert last["hiou_loss"] != every["hiou_loss"]


def test_more_objects_than_queries_are_refused() -> None:
    data = c.DataConfig(max_objects=17)
    with pytest.raises(c.ConfigError, match=r"model.num_queries is 16; .*data.max_objects = 17"):
        c.Config("few", data=data, model=tiny.RTDETR)
    with pytest.raises(c.ConfigError, match=r"loss.cls_loss is 'isr'"):
        c.Config("isr", data=c.DataConfig(max_objects=9), model=tiny.RTDETR,
                 loss=c.LossConfig(hardet=False, cls_loss="isr"))  # fmt: skip


def test_more_objects_than_cells_are_refused() -> None:
    """Each cell may be a query; of 64 x 64 pixels there are 64 + 16 + 4."""
    for most in (84, 85):
        data = c.DataConfig(short_sides=(64,), max_side=64, stride=32, max_objects=most)
        model = dataclasses.replace(tiny.RTDETR, num_queries=300)
        if most == 84:
            c.Config("few", data=data, model=model)
            continue
        told = r"data.max_objects is 85; it must be at most 84, the cells of 64 x 64 pixels"
        with pytest.raises(c.ConfigError, match=told):
            c.Config("many", data=data, model=model)


@pytest.mark.parametrize("size", [1e30, 2e38])
def test_logits_of_a_run_that_diverges_are_matched_all_the_same(size: float) -> None:
    """The search for the assignment adds costs up, and would never end beyond float32."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.uniform(-size, size, (13, 3)), jnp.float32)
    boxes = jnp.asarray(rng.uniform(0.2, 0.4, (13, 4)), jnp.float32)
    truth = GroundTruth(
        boxes=jnp.zeros((12, 4)), labels=jnp.asarray(rng.integers(0, 3, 12), jnp.int32),
        valid=jnp.ones(12, bool),
    )  # fmt: skip
    aims = jax.jit(q.match_queries)(q.Queries(logits, boxes), boxes[:12], truth)
    assert int(aims.is_positive.sum()) == 12
