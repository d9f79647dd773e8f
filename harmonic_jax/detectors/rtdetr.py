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
from harmonic_jax.checks import check_fields, require
from harmonic_jax.detectors.parts.heads import Linear
from harmonic_jax.detectors.parts.hybrid_encoder import ConvNorm, HybridEncoder
from harmonic_jax.detectors.parts.objective import (
    LossConfig,
    LossSums,
    join_groups,
    masked,
    sample_sums,
)
from harmonic_jax.detectors.parts.queries import (
    BOX_GIOU,
    BOX_L1,
    Aims,
    DenoisingConfig,
    Queries,
    cell_boxes,
    inverse_sigmoid,
    match_queries,
    noised_objects,
    to_corners,
    to_parts,
    who_sees_whom,
)
from harmonic_jax.detectors.parts.rivals import cls_losses, true_class_logit
from harmonic_jax.detectors.parts.selection import (
    PostprocessConfig,
    best_pairs,
    mark_non_finite,
    select_detections,
)
from harmonic_jax.detectors.parts.transformer import MLP, DecoderLayer, layer_norm, xavier
from harmonic_jax.structures import Batch, Detections

STRIDES = (8, 16, 32)
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
    denoising: DenoisingConfig = DenoisingConfig()
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


class RTDETR(nnx.Module):
    """Called in three steps, because the noised objects of training join between them.

    `encode` -> `propose` -> `decode`.
    """

    def __init__(
        self, config: RTDETRConfig, num_classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        channels = config.decoder_channels
        made: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.backbone = build_backbone(config.backbone, **made)
        self.encoder = HybridEncoder(
            config.backbone.channels[-len(STRIDES) :],
            config.channels,
            expansion=config.expansion,
            num_heads=config.num_heads,
            hidden=config.ffn,
            **made,
        )
        conv = partial(ConvNorm, config.channels, channels, has_silu=False, **made)
        self.memory = nnx.List([conv() for _ in STRIDES])
        # A score of .01 for every class at the start, as for the focal loss.
        prior = nnx.initializers.constant(-math.log(99.0))
        scores = partial(Linear, channels, num_classes, kernel_init=xavier, bias_init=prior, **made)
        boxes = partial(MLP, channels, channels, channels, 4, is_zero=True, **made)
        self.cell = Linear(channels, channels, kernel_init=xavier, **made)
        self.cell_norm = layer_norm(channels, **made)
        self.cell_scores, self.cell_boxes = scores(), boxes()
        self.places = MLP(4, 2 * channels, channels, **made)
        shape = (config.num_heads, len(STRIDES), config.num_points)
        layer = partial(DecoderLayer, channels, shape, config.decoder_ffn, **made)
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

    def propose(self, memory: Sequence[jax.Array]) -> tuple[jax.Array, Queries]:
        """The cells of the maps with the best scores.

        Returns:
            Their features `[b, q, c]`, constants for the gradient, and what they say, `[b, q, ..]`.
        """
        cells = jnp.concatenate([x.reshape(x.shape[0], -1, x.shape[-1]) for x in memory], axis=1)
        anchors, is_inner = cell_boxes([level.shape[1:3] for level in memory])
        cells = self.cell_norm(self.cell(jnp.where(is_inner[None], cells, 0)))
        logits = self.cell_scores(cells).astype(jnp.float32)
        deltas = self.cell_boxes(cells).astype(jnp.float32)
        count = min(self.config.num_queries, logits.shape[1])
        _, rows = jax.lax.top_k(logits.max(axis=-1), count)
        take = jax.vmap(lambda array, rows: array[rows])
        boxes = jax.nn.sigmoid(take(deltas + anchors[None], rows))
        return jax.lax.stop_gradient(take(cells, rows)), Queries(take(logits, rows), boxes)

    def decode(
        self,
        features: jax.Array,
        boxes: Float[Array, "b q 4"],
        memory: Sequence[jax.Array],
        mask: Bool[Array, "b q q"] | None = None,
    ) -> list[Queries]:
        """What the queries say after each layer.

        A layer moves the boxes of the layer before. The gradient of a box reaches one layer back
        and no farther ("look forward twice", Zhang et al., DINO, 2022).

        Args:
            features: `[b, q, c]`.
            boxes: where they begin, constants.
            memory: the maps.
            mask: which query looks at which; None: every at every.
        """
        boxes = before = jax.lax.stop_gradient(boxes)
        outputs = []
        for layer, scores, moves in zip(self.layers, self.scores, self.boxes, strict=True):
            features = layer(features, self.places(boxes), boxes, memory, mask)
            move = moves(features).astype(jnp.float32)
            seen = jax.nn.sigmoid(move + inverse_sigmoid(before))
            outputs.append(Queries(scores(features).astype(jnp.float32), seen))
            before = jax.nn.sigmoid(move + inverse_sigmoid(boxes))
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
    objects = masked(to_parts(jnp.asarray(truth.boxes, jnp.float32), shape), truth.valid)
    memory = model.encode(batch.images, batch.image_size)
    features, cells = model.propose(memory)
    num_noised, mask, aims = 2 * config.denoising.num_objects, None, None
    boxes = cells.boxes
    if num_noised:
        # Draws depend on the record, not on its place in the batch.
        keys = jax.vmap(partial(jax.random.fold_in, key))(batch.record_index)
        draw = partial(noised_objects, config=config.denoising, num_classes=model.num_classes)
        aims, given, noised, group = jax.vmap(draw)(keys, objects, truth)
        named = masked(model.classes(given), given < model.num_classes)
        features = jnp.concatenate((named.astype(features.dtype), features), axis=1)
        boxes = jnp.concatenate((noised, boxes), axis=1)
        mask = jax.vmap(partial(who_sees_whom, num_queries=cells.boxes.shape[1]))(group)
    layers = model.decode(features, boxes, memory, mask)

    sums = partial(layer_sums, is_real=batch.is_real, loss=loss, shape=shape)
    own = [cells, *(jax.tree.map(lambda a: a[:, num_noised:], layer) for layer in layers)]
    queries = jax.tree.map(lambda *of_layers: jnp.stack(of_layers), *own)
    matched = jax.vmap(jax.vmap(match_queries), (0, None, None))(queries, objects, truth)
    plain = dataclasses.replace(loss, hardet=False)
    if loss.hardet and config.hardet_layers == "last":
        total = sums(*jax.tree.map(lambda a: a[-1:], (queries, matched)))
        others = sums(*jax.tree.map(lambda a: a[:-1], (queries, matched)), loss=plain)
        added = {name: total.terms[name] + others.terms[name] for name in ("cls_loss", "box_loss")}
        total = dataclasses.replace(
            total, total=total.total + others.total, terms=total.terms | added
        )
    else:
        total = sums(queries, matched)
    if aims is None:
        return join_groups([total], batch.is_real, batch_axis=batch_axis)
    first = jax.tree.map(lambda *of_layers: jnp.stack(of_layers)[:, :, :num_noised], *layers)
    repeated = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(layers), *a.shape)), aims)
    noised_sums = sums(first, repeated, loss=plain)
    noised_sums = dataclasses.replace(noised_sums, terms={"denoising_loss": noised_sums.total})
    return join_groups([noised_sums, total], batch.is_real, batch_axis=batch_axis)


def layer_sums(
    queries: Queries,
    aims: Aims,
    *,
    is_real: Bool[Array, " b"],
    loss: LossConfig,
    shape: tuple[int, ...],
) -> LossSums:
    """The losses of some layers, to be divided by the positives of one.

    Args:
      queries, aims: `[l, b, q, ..]`.
      is_real: `[b]`, False for slots that only fill the batch.
      loss: which losses, and their constants.
      shape: height and width of the padded images.

    Returns:
      Sums over the batch; those for the log are means over the layers.
    """
    num_layers = queries.boxes.shape[0]
    queries, aims = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (queries, aims))
    is_real = jnp.tile(is_real, num_layers)[:, None]
    positive, counted = aims.is_positive & is_real, aims.is_counted & is_real
    parts = masked(queries.boxes, positive)
    boxes, targets = to_corners(parts, shape), to_corners(masked(aims.boxes, positive), shape)
    iou = losses.aligned_iou(boxes, targets, where=positive)
    l1 = losses.smooth_l1_loss(parts, aims.boxes, beta=0.0, where=positive)
    labels = jnp.where(positive, aims.labels, queries.cls_logits.shape[-1])
    true_logit = true_class_logit(queries.cls_logits, labels)
    # Published: a positive that misses its object is no negative; the varifocal loss has weight 0.
    quality = jnp.maximum(iou, _TINY)
    sums = sample_sums(
        cls_losses(queries.cls_logits, labels, quality, where=counted, loss=loss).sum(-1),
        BOX_L1 * l1 + BOX_GIOU * losses.giou_loss(boxes, targets, where=positive),
        jax.nn.sigmoid(true_logit),
        iou,
        losses.sigmoid_entropy(true_logit, where=positive),
        cross_entropy=jax.nn.softplus(-true_logit),
        positive=positive,
        negative=counted & ~positive,
        loss=loss,
    )
    terms = {
        name: value if name in ("cls_loss", "box_loss") else value / num_layers
        for name, value in sums.terms.items()
    }
    count = sums.num_positive / num_layers
    return dataclasses.replace(sums, terms=terms, normalizer=count, num_positive=count)


# --- Detections ----------------------------------------------------------------------------------


def detect(model: RTDETR, batch: Batch) -> Detections:
    """The `postprocess.topk` best (query, class) pairs of the last layer. See `detectors.detect`.

    They pass the suppression, which does nothing at the default `nms_iou` of 1.
    """
    config = model.config.postprocess
    memory = model.encode(batch.images, batch.image_size)
    features, cells = model.propose(memory)
    last = model.decode(features, cells.boxes, memory)[-1]

    def of_image(found: Queries, size: Float[Array, " 2"]) -> Detections:
        scores, rows, labels = best_pairs(found.cls_logits, config.score_threshold, config.topk)
        boxes = to_corners(found.boxes[rows], batch.images.shape[1:3])
        return select_detections(boxes, scores, labels, size, config)

    return mark_non_finite(jax.vmap(of_image)(last, batch.image_size), (cells, last))
