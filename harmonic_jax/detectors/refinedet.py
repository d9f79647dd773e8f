"""RefineDet (Zhang et al. 2018, "Single-Shot Refinement Neural Network for Object Detection").

SSD twice: an anchor refinement module (ARM) tells objects from background and moves the anchors,
and an object detection module (ODM) starts from those.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.lax import stop_gradient
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from harmonic_jax.backbones import BackboneConfig, VGGConfig, build_backbone
from harmonic_jax.backbones.conv import xavier_uniform
from harmonic_jax.backbones.layers import ConvLayer
from harmonic_jax.checks import check_fields, require
from harmonic_jax.detectors.parts.anchors import BOX_WEIGHTS, level_shapes, make_default_boxes
from harmonic_jax.detectors.parts.heads import ConvTranspose, L2Norm, MultiBoxHead
from harmonic_jax.detectors.parts.objective import LossConfig, LossSums, join_groups
from harmonic_jax.detectors.parts.selection import PostprocessConfig, mark_non_finite
from harmonic_jax.detectors.ssd import (
    MultiBoxMatchConfig,
    detect_in_image,
    extra_layer,
    multibox_sums,
)
from harmonic_jax.ops.box_coder import decode_boxes
from harmonic_jax.structures import Batch, Detections, Predictions

LEVELS = (3, 6)  # Strides 8, 16, 32 and 64.

# --- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RefineDetConfig:
    """RefineDet (Zhang et al. 2018): levels of stride 8, 16, 32 and 64."""

    backbone: BackboneConfig = VGGConfig()
    l2_scales: Annotated[tuple[float, float], "[0.001, 1000]"] = (10.0, 8.0)
    """Length of the feature vectors of stride 8 and 16 at the start of training."""
    extra_channels: Annotated[int, "[8, 4096]"] = 512
    """Of the level of stride 64."""
    norm: Literal["none", "batch"] = "none"
    """Norm of the layers above the backbone: `batch` to train from scratch."""
    channels: Annotated[int, "[8, 4096]"] = 256
    """Of the transfer connection blocks."""
    deconv_size: Literal[2, 4] = 4
    """Kernel of the transposed convolutions: 4 in the paper's figure, 2 in its Caffe code."""
    size_factor: Annotated[float, "[0.01, 1000]"] = 4.0
    """Side of a level's square anchor in strides."""
    max_ratio: Annotated[int, "[1, 16]"] = 2
    """Ratio of the longest anchors; 1: squares only."""
    min_objectness: Annotated[float, "[0, 1)"] = 0.01
    """Anchors to which the ARM gives less are no negatives of the ODM, and detect nothing."""
    match: MultiBoxMatchConfig = MultiBoxMatchConfig()
    postprocess: PostprocessConfig = PostprocessConfig(
        score_threshold=0.01, topk=1000, nms_iou=0.45, max_detections=500
    )

    def __post_init__(self) -> None:
        check_fields(self, "model")
        require(
            self.backbone.strides[-3:] == (8, 16, 32),
            "model.backbone.atrous",
            True,
            "False: RefineDet needs a map of stride 32",
        )

    @property
    def stride(self) -> int:
        """Padded sides must be multiples of this: none, every layer rounds its size up."""
        return 1

    @property
    def per_location(self) -> int:
        return 2 * self.max_ratio - 1


# --- Module --------------------------------------------------------------------------------------


class RefineDetPredictions(NamedTuple):
    """Raw outputs of both modules, for the same anchors."""

    arm: Predictions  # object and background; deltas of the anchors
    odm: Predictions  # every class, background last; deltas of the refined anchors


class TransferBlock(nnx.Module):
    """A level of the ARM -> the level of the ODM, with what comes from the coarser one.

    conv, ReLU, conv; plus the doubled coarser level; ReLU, conv, ReLU; all 3x3.

    Args of the call:
        x: `[b, h, w, c]`.
        coarser: `[b, ceil(h / 2), ceil(w / 2), channels]`, or None at the top.

    Returns of the call:
        `[b, h, w, channels]`.
    """

    def __init__(
        self,
        num_in: int,
        config: RefineDetConfig,
        *,
        is_top: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        channels, size = config.channels, config.deconv_size
        has_norm = config.norm == "batch"
        conv = partial(ConvLayer, kernel_size=3, has_norm=has_norm, dtype=dtype, rngs=rngs)
        self.first = conv(num_in, channels)
        self.second = conv(channels, channels, activation=None)
        double = partial(ConvTranspose, kernel_init=xavier_uniform, dtype=dtype, rngs=rngs)
        self.double = None if is_top else double(channels, channels, size=size)
        self.last = conv(channels, channels)

    def __call__(self, x: jax.Array, coarser: jax.Array | None) -> jax.Array:
        x = self.second(self.first(x))
        if self.double is not None and coarser is not None:
            x = x + self.double(coarser)[:, : x.shape[1], : x.shape[2]]
        return self.last(jax.nn.relu(x))


class RefineDet(nnx.Module):
    """Images -> outputs of both modules for every anchor.

    Called with `images` and `image_size` as a `backbones.Backbone` is.

    Returns of the call:
        `RefineDetPredictions`, float32, levels of `ceil(h / s) * ceil(w / s) * anchors` for the
        strides s = 8, 16, 32 and 64.
    """

    def __init__(
        self, config: RefineDetConfig, num_classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.backbone = build_backbone(config.backbone, dtype=dtype, rngs=rngs)
        channels = (*config.backbone.channels[-3:], config.extra_channels)
        self.l2_norms = nnx.List(
            [
                L2Norm(num, scale=scale)
                for num, scale in zip(channels[:2], config.l2_scales, strict=True)
            ]
        )
        self.extra = extra_layer(
            channels[2], channels[3], "3x3/2", norm=config.norm, dtype=dtype, rngs=rngs
        )
        self.transfer = nnx.List(
            [
                TransferBlock(num, config, is_top=i == 3, dtype=dtype, rngs=rngs)
                for i, num in enumerate(channels)
            ]
        )

        per_location = (config.per_location,) * 4
        head = partial(MultiBoxHead, per_location=per_location, dtype=dtype, rngs=rngs)
        self.arm = head(channels, num_outputs=2)
        self.odm = head((config.channels,) * 4, num_outputs=num_classes + 1)
        self.config = config

    def __call__(
        self, images: jax.Array, image_size: jax.Array | None = None
    ) -> RefineDetPredictions:
        *fine, top = self.backbone(images, image_size)[-3:]
        levels = [norm(x) for norm, x in zip(self.l2_norms, fine, strict=True)] + [top]
        for conv in self.extra:
            top = conv(top)
        levels.append(top)
        transferred: list[jax.Array] = []
        coarser = None
        for block, x in zip(reversed(self.transfer), reversed(levels), strict=True):
            coarser = block(x, coarser)
            transferred.insert(0, coarser)
        return RefineDetPredictions(arm=self.arm(levels), odm=self.odm(transferred))


def default_boxes(config: RefineDetConfig, shape: Sequence[int]) -> tuple[np.ndarray, ...]:
    """As of SSD; of each level one size."""
    strides = [2.0**level for level in range(LEVELS[0], LEVELS[1] + 1)]
    return make_default_boxes(
        shape,
        level_shapes(shape, LEVELS),
        sizes=[config.size_factor * stride for stride in strides],
        large_sizes=None,
        max_ratios=[config.max_ratio] * len(strides),
        steps=strides,
    )


def refine_anchors(
    arm: Predictions, anchors: Float[Array, "n 4"]
) -> tuple[Float[Array, "b n 4"], Float[Array, "b n"]]:
    """The anchors of all levels as the ARM moves them, and the objectness it gives them.

    Args:
      arm: raw outputs, [b, n_l, 2] (object, background) and [b, n_l, 4] a level.
      anchors: of all levels, xyxy pixels.

    Returns:
      [b, n, 4] xyxy pixels, not clipped to the image; [b, n] in [0, 1].
    """
    deltas = jnp.concatenate(arm.deltas, axis=1)
    logits = jnp.concatenate(arm.cls_logits, axis=1)
    boxes = decode_boxes(deltas, jnp.broadcast_to(anchors, deltas.shape), weights=BOX_WEIGHTS)
    return boxes, jax.nn.softmax(logits, axis=-1)[..., 0]


# --- Targets and loss ----------------------------------------------------------------------------


def loss_sums(
    model: RefineDet, batch: Batch, loss: LossConfig, key: jax.Array, batch_axis: str | None
) -> LossSums:
    """The losses of both modules, each with its own assignment and number of positives.

    loss = ARM / N_arm + ODM / N_odm

    The ARM has SSD's baseline loss with a single class, object. The ODM has SSD's loss (HarDet
    where the config asks for it) on the anchors that the ARM moved, which are constants here: no
    gradient of the ODM's losses reaches the ARM's outputs. A refined anchor that matches no
    object and to which the ARM gives less than `min_objectness` is no negative. Nothing is drawn
    at random; `num_positive` is the ODM's. See `detectors.loss_sums`.

    Source: Zhang et al., RefineDet, 2018, section 3.
    """
    config = model.config
    anchors = jnp.concatenate(default_boxes(config, batch.images.shape[1:3]))
    arm, odm = model(batch.images, batch.image_size)
    truth = batch.ground_truth
    one_class = dataclasses.replace(truth, labels=jnp.zeros_like(truth.labels))
    arm_sums = multibox_sums(
        arm,
        anchors,
        dataclasses.replace(batch, ground_truth=one_class),
        dataclasses.replace(loss, hardet=False),
        config.match,
    )
    names = {"cls_loss": "arm_cls_loss", "box_loss": "arm_box_loss"}
    terms = {names[name]: value for name, value in arm_sums.terms.items() if name in names}
    arm_sums = dataclasses.replace(arm_sums, terms=terms)

    refined, objectness = stop_gradient(refine_anchors(arm, anchors))
    may_be_negative = objectness >= config.min_objectness
    odm_sums = multibox_sums(odm, refined, batch, loss, config.match, may_be_negative)
    return join_groups([arm_sums, odm_sums], batch.is_real, batch_axis=batch_axis)


# --- Detections ----------------------------------------------------------------------------------


def detect(model: RefineDet, batch: Batch) -> Detections:
    """SSD's, of the anchors that the ARM moved and calls objects. See `detectors.detect`."""
    config = model.config
    arm, odm = model(batch.images, batch.image_size)
    anchors = jnp.concatenate(default_boxes(config, batch.images.shape[1:3]))
    refined, objectness = refine_anchors(arm, anchors)
    found = jax.vmap(lambda *arrays: detect_in_image(*arrays, config=config.postprocess))(
        jnp.concatenate(odm.cls_logits, axis=1),
        decode_boxes(jnp.concatenate(odm.deltas, axis=1), refined, weights=BOX_WEIGHTS),
        objectness >= config.min_objectness,
        batch.image_size,
    )
    return mark_non_finite(found, (arm, odm))
