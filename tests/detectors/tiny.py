"""A small detector of each family, its compiled loss and detections, and batches."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from harmonic_jax import detectors
from harmonic_jax.config import (
    AnchorConfig,
    BoxHeadConfig,
    DefaultBoxConfig,
    DenoisingConfig,
    FasterRCNNConfig,
    LossConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    ModelConfig,
    PostprocessConfig,
    RefineDetConfig,
    ResNetConfig,
    RetinaNetConfig,
    RoIAlignConfig,
    RPNConfig,
    RTDETRConfig,
    SSDConfig,
    VGGConfig,
)
from harmonic_jax.structures import Batch, Detections, GroundTruth, ObjectMasks, Predictions

K = 3
MAX_OBJECTS = 12
KEY = jax.random.key(0)
# Without batch norms an image's result does not depend on the others.
RESNET = ResNetConfig(depth=10, width=8, norm="frozen")
RETINANET = RetinaNetConfig(
    backbone=RESNET,
    levels=(4, 5),
    channels=8,
    head_convs=1,
    head_norm="group",
    anchors=AnchorConfig(size_factor=2.0, scales=(1.0,), ratios=(1.0, 2.0)),
    postprocess=PostprocessConfig(score_threshold=0.0, topk=40, max_detections=10),
)
SSD = SSDConfig(
    backbone=VGGConfig(width=4, atrous=True, fc6_dilation=1),
    extra_layers=("3x3/2",),
    extra_channels=8,
    default_boxes=DefaultBoxConfig(
        sizes=(14.0, 24.0, 40.0, 60.0), max_ratios=(2, 2, 2), steps=(8.0, 16.0, 32.0)
    ),
)
REFINEDET = RefineDetConfig(
    backbone=VGGConfig(width=4, fc6_dilation=1),
    extra_channels=8,
    channels=8,
    size_factor=2.0,
    min_objectness=0.3,
)
MASK_RCNN = MaskRCNNConfig(
    backbone=RESNET,
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
    postprocess=PostprocessConfig(score_threshold=0.0, topk=None, min_size=0.01, max_detections=10),
    mask_head=MaskHeadConfig(num_convs=1, channels=8, pool_size=4),
)
FASTER_RCNN = FasterRCNNConfig(
    **{field.name: getattr(MASK_RCNN, field.name) for field in dataclasses.fields(FasterRCNNConfig)}
)
RTDETR = RTDETRConfig(
    backbone=RESNET,
    channels=8,
    ffn=16,
    decoder_channels=16,
    decoder_ffn=16,
    decoder_layers=2,
    num_heads=2,
    num_points=2,
    num_queries=16,
    denoising=DenoisingConfig(num_objects=8),
    postprocess=PostprocessConfig(score_threshold=0.0, nms_iou=1.0, topk=20, max_detections=10),
)
MODELS: dict[str, ModelConfig] = {
    "retinanet": RETINANET,
    "ssd": SSD,
    "refinedet": REFINEDET,
    "faster_rcnn": FASTER_RCNN,
    "mask_rcnn": MASK_RCNN,
    "rtdetr": RTDETR,
}


def abstract_state(model: ModelConfig, num_classes: int = K) -> tuple[Any, nnx.State, nnx.State]:
    """Graphdef, and the shapes of the parameters and of the rest."""
    made = nnx.eval_shape(lambda: detectors.build_model(model, num_classes, rngs=nnx.Rngs(0)))
    return nnx.split(made, nnx.Param, ...)


@functools.cache
def random_state(model: ModelConfig) -> tuple[Any, nnx.State, nnx.State]:
    """A model filled by NumPy: jax would compile a kernel for the shape of every leaf."""
    rng = np.random.default_rng(0)
    graphdef, params, rest = abstract_state(model)

    def fill(path: tuple, leaf: nnx.Variable) -> nnx.Variable:
        if path[-1] in ("scale", "var"):
            return leaf.replace(jnp.full(leaf.shape, 0.5 if path[-1] == "scale" else 1.0))
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1] == "kernel" else 0.05
        if path[-2] in ("objectness", "logits", "deltas", "output"):
            spread *= 0.2
        return leaf.replace(jnp.asarray(rng.normal(0, spread, leaf.shape), jnp.float32))

    return graphdef, nnx.map_state(fill, params), nnx.map_state(fill, rest)


@functools.cache
def training(name: str) -> Any:
    """(params, batch, seed) -> ((total, sums), gradient of total), compiled once."""
    graphdef, _, rest = random_state(MODELS[name])

    @jax.jit
    def run(params: nnx.State, batch: Batch, seed: int) -> tuple:
        def total(params: nnx.State) -> tuple:
            model = nnx.merge(graphdef, params, rest, copy=True)
            model.train()
            sums = detectors.loss_sums(model, batch, LossConfig(), jax.random.key(seed))
            return sums.total, sums

        return jax.value_and_grad(total, has_aux=True)(params)

    return run


@functools.cache
def detection(name: str) -> Any:
    """(params, batch) -> detections, compiled."""
    graphdef, _, rest = random_state(MODELS[name])

    @jax.jit
    def run(params: nnx.State, batch: Batch) -> Detections:
        model = nnx.merge(graphdef, params, rest, copy=True)
        model.eval()
        return detectors.detect(model, batch)

    return run


def make_batch(
    num_objects: tuple[int, ...], seed: int = 0, *, shape: tuple[int, int] = (64, 64)
) -> Batch:
    """Noise with so many boxes in each image, and masks of noise."""
    rng = np.random.default_rng(seed)
    b, g = len(num_objects), MAX_OBJECTS
    corner = rng.uniform(0, 40, (b, g, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 24, (b, g, 2))], -1)
    valid = np.arange(g) < np.array(num_objects)[:, None]
    truth = GroundTruth(
        jnp.asarray(np.where(valid[..., None], boxes, np.nan), jnp.float32),
        jnp.asarray(rng.integers(0, K, (b, g)), jnp.int32),
        jnp.asarray(valid),
        ObjectMasks(
            jnp.asarray(rng.choice(np.array([0, 255], np.uint8), (b, g, 14, 14))),
            jnp.asarray(boxes, jnp.float32),
        ),
    )
    images = rng.integers(0, 256, (b, *shape, 3), dtype=np.uint8)
    return dataclasses.replace(batch_of(truth, shape), images=jnp.asarray(images))


def batch_of(truth: GroundTruth, shape: tuple[int, int], is_real: Any = None) -> Batch:
    """A batch of black images with these objects."""
    b = truth.valid.shape[0]
    return Batch(
        images=jnp.zeros((b, *shape, 3), jnp.uint8),
        image_size=jnp.tile(jnp.array([shape], jnp.float32), (b, 1)),
        scale=jnp.ones((b, 2)),
        record_index=jnp.arange(100, 100 + b, dtype=jnp.int32),
        is_real=jnp.ones(b, bool) if is_real is None else is_real,
        ground_truth=truth,
    )


class Given:
    """In place of a model: says what it is told, whatever the images."""

    def __init__(self, config: ModelConfig, outputs: Any) -> None:
        self.config, self.outputs = config, outputs

    def __call__(self, images: jax.Array, image_size: jax.Array) -> Any:
        return self.outputs


def random_truth(rng: np.random.Generator, num_objects: tuple[int, ...]) -> GroundTruth:
    """Boxes of 10 to 34 pixels in 64 x 64, padded to five, NaN where there is none."""
    b = len(num_objects)
    corner = rng.uniform(0, 30, (b, 5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 34, (b, 5, 2))], -1)
    valid = np.arange(5) < np.array(num_objects)[:, None]
    return GroundTruth(
        jnp.asarray(np.where(valid[..., None], boxes, np.nan), jnp.float32),
        jnp.asarray(rng.integers(0, K, (b, 5)), jnp.int32),
        jnp.asarray(valid),
    )


def random_outputs(
    rng: np.random.Generator,
    sizes: tuple[int, ...],
    *,
    batch: int = 2,
    num_outputs: int = K,
    mean: float = 0.0,
    spread: tuple[float, float] = (2.0, 0.3),
) -> Predictions:
    """Logits and deltas of levels with so many anchors, and their standard deviations."""

    def draw(mean: float, spread: float, last: int) -> tuple[jax.Array, ...]:
        return tuple(
            jnp.asarray(rng.normal(mean, spread, (batch, n, last)), jnp.float32) for n in sizes
        )

    return Predictions(draw(mean, spread[0], num_outputs), draw(0.0, spread[1], 4))


def of_image(levels: tuple[jax.Array, ...], image: int) -> np.ndarray:
    """The rows of all levels of an image, in float64."""
    return np.concatenate([level[image] for level in levels]).astype(np.float64)


def objects_of(truth: GroundTruth, image: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and labels of an image's objects."""
    keep = np.asarray(truth.valid[image])
    boxes = np.asarray(truth.boxes[image], np.float64)[keep]
    return boxes, np.asarray(truth.labels[image])[keep]


def boxes_of(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes of 8 to 38 pixels."""
    corner = rng.uniform(0, 40, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(8, 30, (count, 2))], -1).astype(np.float32)


def row(tree: Any, i: int) -> Any:
    """An image of a batch of anything."""
    return jax.tree.map(lambda x: x[i], tree)


def predictions_of(logits: list, deltas: list) -> Predictions:
    return Predictions(tuple(map(jnp.asarray, logits)), tuple(map(jnp.asarray, deltas)))


def assert_all_finite(tree: Any) -> None:
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def assert_close(actual: Any, expected: Any, **tolerance: float) -> None:
    """Two trees of arrays are close."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def assert_same(actual: Any, expected: Any) -> None:
    """Two trees of arrays are equal bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def spoil(inputs: Any, is_free: Any, fill: float) -> Any:
    return jax.tree.map(lambda x, free: jnp.where(free, fill, x), inputs, is_free)
