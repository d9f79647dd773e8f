"""The RoI head of Faster R-CNN (Girshick 2015, Ren et al. 2015): regions -> classes and boxes."""

import dataclasses
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from harmonic_jax import losses
from harmonic_jax.backbones.conv import xavier_uniform
from harmonic_jax.backbones.norm import NewNormKind
from harmonic_jax.checks import check_fields, require
from harmonic_jax.detectors.parts.anchors import BOX_WEIGHTS
from harmonic_jax.detectors.parts.heads import ConvStack, Linear
from harmonic_jax.detectors.parts.matching import MatchConfig, Samples, draw_samples
from harmonic_jax.detectors.parts.objective import LossConfig, LossSums, masked, sample_sums
from harmonic_jax.detectors.rpn import Proposals
from harmonic_jax.ops.box_coder import Weights, decode_boxes, encode_boxes
from harmonic_jax.ops.sampling import AnyKey
from harmonic_jax.structures import GroundTruth

NUM_BOX_CONVS = 4

# --- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RoIAlignConfig:
    """How features are cut out of the pyramid (He et al. 2017)."""

    aligned: bool = True
    """Cell centers lie at half-integers, which is right; False: torchvision's detectors."""
    sampling_ratio: Annotated[int, "[1, 8]"] = 2
    """Samples of a bin along each axis."""
    canonical_size: Annotated[float, "[1, 16384]"] = 224.0
    """Side in pixels of a box that is pooled from P4; half of it goes to P3, and so on."""

    def __post_init__(self) -> None:
        check_fields(self, "roi_align")


@dataclasses.dataclass(frozen=True)
class BoxHeadConfig:
    """The RoI head: pooled features -> classes and a box for each of them."""

    layers: Literal["two_fc", "four_conv_fc"] = "two_fc"
    """`two_fc`: two hidden layers; `four_conv_fc`: four 3x3 convolutions and one hidden layer."""
    norm: NewNormKind = "none"
    """Of the convolutions; torchvision's v2 has `batch`."""
    num_hidden: Annotated[int, "[1, 16384]"] = 1024
    pool_size: Annotated[int, "[1, 64]"] = 7
    match: MatchConfig = MatchConfig(positive_iou=0.5, negative_iou=0.5, low_quality=False)
    num_samples: Annotated[int, "[1, 100000]"] = 512
    """RoIs an image that the losses see, out of proposals and ground truth."""
    positive_fraction: Annotated[float, "(0, 1]"] = 0.25
    """Upper bound of the positives among them."""
    delta_weights: Annotated[Weights, "[0.001, 1000]"] = BOX_WEIGHTS
    """Factors of the regression targets dx, dy, dw, dh: the inverse of SSD's variances."""

    def __post_init__(self) -> None:
        check_fields(self, "box_head")
        require(
            self.norm == "none" or self.layers == "four_conv_fc",
            "box_head.norm",
            self.norm,
            "none with layers = two_fc, which have no convolution",
        )


# --- Module --------------------------------------------------------------------------------------


class BoxHead(nnx.Module):
    """Features of a RoI -> logits of all classes, and a box for each of them.

    The last class is background. It has box deltas as well, which nothing reads, so that the
    weights are those of torchvision, all of them.

    Args of the call:
        x: `[r, s, s, channels]`.
        where: `[r]`, rows that exist.

    Returns of the call:
        Logits `[r, k + 1]` and deltas `[r, k + 1, 4]`, float32.
    """

    def __init__(
        self,
        config: BoxHeadConfig,
        channels: int,
        num_classes: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        linear = partial(Linear, dtype=dtype, rngs=rngs)
        has_convs = config.layers == "four_conv_fc"
        self.convs = ConvStack(
            channels,
            channels,
            num_convs=NUM_BOX_CONVS if has_convs else 0,
            norm=config.norm if has_convs else "none",
            dtype=dtype,
            rngs=rngs,
        )
        hidden, flat = config.num_hidden, channels * config.pool_size**2
        sizes = [flat, hidden] if has_convs else [flat, hidden, hidden]
        self.hidden = nnx.List(
            [linear(*pair, kernel_init=xavier_uniform) for pair in pairwise(sizes)]
        )
        normal = nnx.initializers.normal
        self.logits = linear(hidden, num_classes + 1, kernel_init=normal(0.01))
        self.deltas = linear(hidden, 4 * (num_classes + 1), kernel_init=normal(0.001))

    def __call__(self, x: jax.Array, where: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        x = self.convs(x, where)
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        deltas = self.deltas(x).astype(jnp.float32)
        return self.logits(x).astype(jnp.float32), deltas.reshape(x.shape[0], -1, 4)


# --- Targets and loss ----------------------------------------------------------------------------


def sample_rois(
    key: AnyKey,
    proposals: Proposals,
    ground_truth: GroundTruth,
    config: BoxHeadConfig,
    *,
    num_classes: int,
) -> Samples:
    """Draw a balanced sample of an image's proposals and of its objects' own boxes.

    Early in training the objects' boxes are the only good ones. See `draw_samples`.
    """
    return draw_samples(
        key,
        jnp.concatenate((proposals.boxes, jnp.asarray(ground_truth.boxes, jnp.float32))),
        jnp.concatenate((proposals.valid, ground_truth.valid)),
        ground_truth,
        match=config.match,
        num_samples=config.num_samples,
        positive_fraction=config.positive_fraction,
        num_classes=num_classes,
    )


def roi_sums(
    cls_logits: Float[Array, "b s c"],
    deltas: Float[Array, "b s c 4"],
    samples: Samples,
    is_real: Bool[Array, " b"],
    loss: LossConfig,
    config: BoxHeadConfig,
) -> tuple[LossSums, LossSums]:
    """Softmax cross entropy and SmoothL1 of the true class's box, or HarDet, of sampled RoIs.

    HarDet joins the two losses of positives; negatives keep their cross entropy. Its probability
    is the softmax's of the true class, its entropy runs over all c = k + 1 classes, background
    included. In either case the sum is divided by the number of sampled RoIs, positive and
    negative, so that the balance with the RPN is the baseline's.

    Args:
      cls_logits: background last.
      deltas: for each class.
      samples: [b, s].
      is_real: [b], False for slots that only fill the batch.
      loss: which losses, and their constants.
      config: `delta_weights`, factors of the regression targets.

    Returns:
      Sums over the batch, to be divided by the number of sampled RoIs; and means for the log,
      `positive_score` and `positive_iou`, to be divided by the number of positive ones. With
      HarDet the log has `hiou_loss` and `tc_loss` too.
    """
    counted = samples.valid & is_real[:, None]
    positive = samples.is_positive & counted
    cls_loss = losses.softmax_cross_entropy(cls_logits, samples.labels, where=counted)
    own = masked(_of_class(deltas, samples), positive)
    target_deltas = encode_boxes(samples.targets, samples.boxes, weights=config.delta_weights)
    box_loss = losses.smooth_l1_loss(own, target_deltas, beta=loss.smooth_l1_beta, where=positive)
    boxes = decode_boxes(own, samples.boxes, weights=config.delta_weights)
    iou = losses.aligned_iou(boxes, samples.targets, where=positive)
    sums = sample_sums(
        cls_loss,
        box_loss,
        jnp.exp(-cls_loss),
        iou,
        losses.softmax_entropy(cls_logits, where=positive),
        cross_entropy=cls_loss,  # of a softmax head they are one
        positive=positive,
        negative=counted & ~positive,
        loss=loss,
    )
    minimised = {name: sums.terms[name] for name in ("cls_loss", "box_loss")}
    logged = {name: value for name, value in sums.terms.items() if name not in minimised}
    num_counted = counted.sum(dtype=jnp.float32)
    return (
        dataclasses.replace(sums, terms=minimised, normalizer=num_counted),
        dataclasses.replace(sums, terms=logged, total=jnp.zeros((), jnp.float32)),
    )


def _of_class(deltas: Float[Array, "b s c 4"], samples: Samples) -> Float[Array, "b s 4"]:
    """The deltas of each RoI's class."""
    return jnp.take_along_axis(deltas, samples.labels[..., None, None], axis=2)[:, :, 0]
