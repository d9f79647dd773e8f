"""RT-DETRv2 (Lv et al. 2023 and 2024): a transformer that names each object once, without NMS.

A hybrid encoder mixes the backbone's maps; its best cells become queries; decoder layers refine
their boxes. In training each object is matched to one query, and noised copies of the objects are
queries too. Boxes are cx, cy, w, h as parts of the padded image until the end.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from harmonic_jax import losses
from harmonic_jax.backbones import BackboneConfig, ResNetConfig, build_backbone
from harmonic_jax.backbones.conv import he_normal
from harmonic_jax.backbones.layers import ConvLayer
from harmonic_jax.checks import check_fields, require
from harmonic_jax.detectors.parts import queries as q
from harmonic_jax.detectors.parts.heads import Linear
from harmonic_jax.detectors.parts.objective import (
    LossConfig,
    LossSums,
    join_groups,
    masked,
    sample_sums,
)
from harmonic_jax.detectors.parts.pyramid import upsample_like
from harmonic_jax.detectors.parts.rivals import cls_losses, true_class_logit
from harmonic_jax.detectors.parts.selection import (
    PostprocessConfig,
    best_pairs,
    finite_or_nan,
    mark_non_finite,
    select_detections,
)
from harmonic_jax.detectors.parts.transformer import (
    MLP,
    TransformerLayer,
    layer_norm,
    sine_places,
    xavier,
)
from harmonic_jax.structures import Batch, Detections

STRIDES = (8, 16, 32)
NUM_REP_BLOCKS = 3  # of a CSP layer
LOSS_TERMS = ("cls_loss", "box_loss")
_TINY = 1e-12

# --- Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RTDETRConfig:
    """RT-DETRv2 (Lv et al. 2023, 2024); the defaults are its R18's. It needs no NMS."""

    backbone: BackboneConfig = ResNetConfig(depth=18, variant="d")
    channels: Annotated[int, "[8, 4096]"] = 256
    """Of the encoder; 384 in the published R101."""
    ffn: Annotated[int, "[8, 16384]"] = 1024
    """Hidden units of the encoder's attention layer; 2048 in R101."""
    expansion: Annotated[float, "[0.125, 4]"] = 0.5
    """Channels of the fusion blocks, of the encoder's; 1 in R50 and R101."""
    decoder_channels: Annotated[int, "[8, 4096]"] = 256
    decoder_ffn: Annotated[int, "[8, 16384]"] = 1024
    decoder_layers: Annotated[int, "[1, 16]"] = 3
    """4 in R34, 6 in R50 and R101."""
    num_heads: Annotated[int, "[1, 64]"] = 8
    num_points: Annotated[int, "[1, 16]"] = 4
    """Cells that a head reads of each map."""
    num_queries: Annotated[int, "[1, 10000]"] = 300
    """At least data.max_objects, and the most that an image can have."""
    denoising: q.DenoisingConfig = q.DenoisingConfig()
    hardet_layers: Literal["all", "last"] = "all"
    """Where loss.hardet joins the losses: the encoder and every decoder layer, or the last one."""
    postprocess: PostprocessConfig = PostprocessConfig(
        score_threshold=0.0, topk=300, nms_iou=1.0, max_detections=300
    )

    def __post_init__(self) -> None:
        check_fields(self, "model")
        missing = [stride for stride in STRIDES if stride not in self.backbone.strides]
        require(not missing, "model.backbone", self.backbone.strides, f"one of strides {STRIDES}")
        for field, multiple in (("channels", 4), ("decoder_channels", 1)):
            value = getattr(self, field)
            least = math.lcm(self.num_heads, multiple)
            legal = f"a multiple of {least}: of model.num_heads, and of {multiple}"
            require(value % least == 0, f"model.{field}", value, legal)

    @property
    def stride(self) -> int:
        """Padded sides must be multiples of this: the coarsest map's stride."""
        return STRIDES[-1]


# --- Module --------------------------------------------------------------------------------------


conv_layer = partial(
    ConvLayer, kernel_size=1, has_norm=True, activation=jax.nn.silu, kernel_init=he_normal
)


class RepBlock(nnx.Module):
    """A 3x3 and a 1x1 convolution, added (RepVGG, Ding et al. 2021)."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        conv = partial(conv_layer, channels, channels, activation=None, dtype=dtype, rngs=rngs)
        self.conv3, self.conv1 = conv(kernel_size=3), conv()

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.silu(self.conv3(x) + self.conv1(x))


class CSPLayer(nnx.Module):
    """Two maps joined: one half of the channels passes blocks, the other does not."""

    def __init__(self, channels: int, expansion: float, *, dtype: DTypeLike, rngs: nnx.Rngs):
        hidden = int(channels * expansion)
        conv = partial(conv_layer, dtype=dtype, rngs=rngs)
        block = partial(RepBlock, hidden, dtype=dtype, rngs=rngs)
        self.enter, self.skip = conv(2 * channels, hidden), conv(2 * channels, hidden)
        self.blocks = nnx.List([block() for _ in range(NUM_REP_BLOCKS)])
        self.leave = nnx.List([conv(hidden, channels)] if hidden != channels else [])

    def __call__(self, *maps: jax.Array) -> jax.Array:
        x = jnp.concatenate(maps, axis=-1)
        y = self.enter(x)
        for block in self.blocks:
            y = block(y)
        y = y + self.skip(x)
        for conv in self.leave:
            y = conv(y)
        return y


class HybridEncoder(nnx.Module):
    """Attention on the coarsest map, then fusion downwards and upwards."""

    def __init__(self, config: RTDETRConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        channels, fusions = config.channels, range(len(STRIDES) - 1)
        made: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        conv = partial(conv_layer, num_out=channels, **made)
        csp = partial(CSPLayer, channels, config.expansion, **made)
        gelu = partial(jax.nn.gelu, approximate=False)
        inputs = config.backbone.channels[-len(STRIDES) :]
        self.inputs = nnx.List([conv(num, activation=None) for num in inputs])
        self.layer = TransformerLayer(channels, config.num_heads, config.ffn, gelu, **made)
        self.laterals = nnx.List([conv(channels) for _ in fusions])
        self.down = nnx.List([csp() for _ in fusions])
        self.strided = nnx.List([conv(channels, kernel_size=3, stride=2) for _ in fusions])
        self.up = nnx.List([csp() for _ in fusions])

    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        finer = [conv(x) for conv, x in zip(self.inputs, maps, strict=True)]
        x = finer.pop()
        b, h, w, c = x.shape
        x = self.layer(x.reshape(b, h * w, c), jnp.asarray(sine_places(h, w, c))).reshape(x.shape)
        coarser = []
        for lateral, fuse in zip(self.laterals, self.down, strict=True):
            below = finer.pop()
            coarser.append(lateral(x))
            x = fuse(upsample_like(coarser[-1], below), below)
        outputs = [x]
        for strided, fuse in zip(self.strided, self.up, strict=True):
            outputs.append(fuse(strided(outputs[-1]), coarser.pop()))
        return outputs


class RTDETR(nnx.Module):
    """`encode` -> `propose` -> `decode`; the noised objects of training join before the last."""

    def __init__(
        self, config: RTDETRConfig, num_classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        channels = config.decoder_channels
        made: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.backbone = build_backbone(config.backbone, **made)
        self.encoder = HybridEncoder(config, **made)
        conv = partial(conv_layer, config.channels, channels, activation=None, **made)
        self.memory = nnx.List([conv() for _ in STRIDES])
        # A score of .01 for every class at the start, as for the focal loss.
        prior = nnx.initializers.constant(-math.log(99.0))
        scores = partial(Linear, channels, num_classes, kernel_init=xavier, bias_init=prior, **made)
        zeros = nnx.initializers.zeros
        boxes = partial(MLP, channels, channels, channels, 4, last_init=zeros, **made)
        self.cell = Linear(channels, channels, kernel_init=xavier, **made)
        self.cell_norm = layer_norm(channels, **made)
        self.cell_scores, self.cell_boxes = scores(), boxes()
        self.places = MLP(4, 2 * channels, channels, **made)
        layer = partial(
            TransformerLayer, channels, config.num_heads, config.decoder_ffn, jax.nn.relu,
            (len(STRIDES), config.num_points), **made,
        )  # fmt: skip
        self.layers = nnx.List([layer() for _ in range(config.decoder_layers)])
        self.scores = nnx.List([scores() for _ in self.layers])
        self.boxes = nnx.List([boxes() for _ in self.layers])
        # The last row is of no class.
        self.classes = nnx.Embed(num_classes + 1, channels, embedding_init=xavier, **made)
        self.config, self.num_classes = config, num_classes

    def encode(self, images: jax.Array, image_size: jax.Array | None = None) -> list[jax.Array]:
        """Images -> the maps that queries read, `[b, h / s, w / s, decoder_channels]`."""
        maps = self.backbone(images, image_size)[-len(STRIDES) :]
        return [conv(x) for conv, x in zip(self.memory, self.encoder(maps), strict=True)]

    def propose(self, memory: Sequence[jax.Array]) -> tuple[jax.Array, q.Queries]:
        """The best cells: their features `[b, q, c]`, without gradient, and what they say."""
        cells = jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in memory], axis=1)
        anchors, is_inner = q.cell_boxes([level.shape[1:3] for level in memory])
        cells = self.cell_norm(self.cell(jnp.where(is_inner[None], cells, 0)))
        logits = self.cell_scores(cells).astype(jnp.float32)
        deltas = finite_or_nan(self.cell_boxes(cells).astype(jnp.float32))
        count = min(self.config.num_queries, logits.shape[1])
        _, rows = jax.lax.top_k(logits.max(axis=-1), count)
        take = jax.vmap(lambda array, rows: array[rows])
        boxes = jax.nn.sigmoid(take(deltas + anchors[None], rows))
        return jax.lax.stop_gradient(take(cells, rows)), q.Queries(take(logits, rows), boxes)

    def decode(
        self,
        features: jax.Array,
        boxes: Float[Array, "b q 4"],
        memory: Sequence[jax.Array],
        mask: Bool[Array, "b q q"] | None = None,
    ) -> list[q.Queries]:
        """What the queries say after each layer.

        A layer moves the boxes of the layer before; the first begins at `boxes`, constants. The
        gradient of a box reaches one layer back and no farther ("look forward twice", Zhang et
        al., DINO, 2022). `mask` says which query looks at which; None: every at every.
        """
        boxes = before = jax.lax.stop_gradient(boxes)
        outputs = []
        for layer, scores, moves in zip(self.layers, self.scores, self.boxes, strict=True):
            features = layer(features, self.places(boxes), mask, boxes, memory)
            move = finite_or_nan(moves(features).astype(jnp.float32))
            seen = jax.nn.sigmoid(move + q.inverse_sigmoid(before))
            outputs.append(q.Queries(scores(features).astype(jnp.float32), seen))
            before = jax.nn.sigmoid(move + q.inverse_sigmoid(boxes))
            boxes = jax.lax.stop_gradient(before)
        return outputs


# --- Targets and loss ----------------------------------------------------------------------------


def loss_sums(
    model: RTDETR, batch: Batch, loss: LossConfig, key: jax.Array, batch_axis: str | None
) -> LossSums:
    """(Encoder's queries + every layer's) / N_objects + noised objects of every layer / N_noised.

    The best cells and each layer's queries are matched anew. A query's losses are `loss.cls_loss`,
    of positives and negatives, and 5 L1 + 2 GIoU of positives, joined by HarDet with
    `loss.hardet`; those of noised objects never are. See `detectors.loss_sums`.
    """
    config, truth, shape = model.config, batch.ground_truth, batch.images.shape[1:3]
    objects = masked(q.to_parts(jnp.asarray(truth.boxes, jnp.float32), shape), truth.valid)
    memory = model.encode(batch.images, batch.image_size)
    features, cells = model.propose(memory)
    sums = partial(layer_sums, is_real=batch.is_real, shape=shape)
    plain = dataclasses.replace(loss, hardet=False)
    num_noised, boxes, mask = 2 * config.denoising.num_objects, cells.boxes, None
    if num_noised:
        # Draws depend on the record, not on its place in the batch.
        keys = jax.vmap(partial(jax.random.fold_in, key))(batch.record_index)
        draw = partial(q.noised_objects, config=config.denoising, num_classes=model.num_classes)
        aims, given, noised, group = jax.vmap(draw)(keys, objects, truth)
        named = masked(model.classes(given), given < model.num_classes)
        features = jnp.concatenate((named.astype(features.dtype), features), axis=1)
        boxes = jnp.concatenate((noised, boxes), axis=1)
        mask = jax.vmap(partial(q.who_sees_whom, num_queries=cells.boxes.shape[1]))(group)
    layers = model.decode(features, boxes, memory, mask)
    groups = []
    if num_noised:
        first = jax.tree.map(lambda *rows: jnp.stack(rows)[:, :, :num_noised], *layers)
        aims = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(layers), *a.shape)), aims)
        noised_sums = sums(first, aims, loss=plain)
        groups = [dataclasses.replace(noised_sums, terms={"denoising_loss": noised_sums.total})]

    own = [cells, *(jax.tree.map(lambda a: a[:, num_noised:], layer) for layer in layers)]
    found = jax.tree.map(lambda *rows: jnp.stack(rows), *own)
    matched = jax.vmap(jax.vmap(q.match_queries), (0, None, None))(found, objects, truth)
    num_plain = len(layers) if loss.hardet and config.hardet_layers == "last" else 0
    total = sums(*jax.tree.map(lambda a: a[num_plain:], (found, matched)), loss=loss)
    if num_plain:
        others = sums(*jax.tree.map(lambda a: a[:num_plain], (found, matched)), loss=plain)
        terms = total.terms | {k: total.terms[k] + others.terms[k] for k in LOSS_TERMS}
        total = dataclasses.replace(total, total=total.total + others.total, terms=terms)
    return join_groups([*groups, total], batch.is_real, batch_axis=batch_axis)


def layer_sums(
    found: q.Queries,
    aims: q.Aims,
    *,
    is_real: Bool[Array, " b"],
    loss: LossConfig,
    shape: tuple[int, ...],
) -> LossSums:
    """The losses of l layers, `[l, b, q, ..]`, to be divided by the positives of one.

    `shape` is the height and width of the padded images. Terms for the log are means over layers.
    """
    share = 1 / len(found.boxes)
    is_real = jnp.tile(is_real, len(found.boxes))[:, None]
    found, aims = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (found, aims))
    positive, counted = aims.is_positive & is_real, aims.is_counted & is_real
    parts = masked(found.boxes, positive)
    boxes, targets = (q.to_corners(a, shape) for a in (parts, masked(aims.boxes, positive)))
    iou = losses.aligned_iou(boxes, targets, where=positive)
    l1 = losses.smooth_l1_loss(parts, aims.boxes, beta=0.0, where=positive)
    labels = jnp.where(positive, aims.labels, found.cls_logits.shape[-1])
    true_logit = true_class_logit(found.cls_logits, labels)
    # Published: a positive that misses its object is no negative; the varifocal loss has weight 0.
    quality = jnp.maximum(iou, _TINY)
    sums = sample_sums(
        cls_losses(found.cls_logits, labels, quality, where=counted, loss=loss).sum(-1),
        q.BOX_L1 * l1 + q.BOX_GIOU * losses.giou_loss(boxes, targets, where=positive),
        jax.nn.sigmoid(true_logit),
        iou,
        losses.sigmoid_entropy(true_logit, where=positive),
        cross_entropy=jax.nn.softplus(-true_logit),
        positive=positive,
        negative=counted & ~positive,
        loss=loss,
    )
    terms = {k: v if k in LOSS_TERMS else v * share for k, v in sums.terms.items()}
    return LossSums(sums.total, terms, sums.num_positive * share, sums.num_positive * share)


# --- Detections ----------------------------------------------------------------------------------


def detect(model: RTDETR, batch: Batch) -> Detections:
    """The `postprocess.topk` best (query, class) pairs of the last layer. See `detectors.detect`.

    They pass the suppression, which does nothing at the default `nms_iou` of 1.
    """
    config = model.config.postprocess
    memory = model.encode(batch.images, batch.image_size)
    features, cells = model.propose(memory)
    last = model.decode(features, cells.boxes, memory)[-1]

    def of_image(found: q.Queries, size: Float[Array, " 2"]) -> Detections:
        scores, rows, labels = best_pairs(found.cls_logits, config.score_threshold, config.topk)
        boxes = q.to_corners(found.boxes[rows], batch.images.shape[1:3])
        return select_detections(boxes, scores, labels, size, config)

    return mark_non_finite(jax.vmap(of_image)(last, batch.image_size), (cells, last))
