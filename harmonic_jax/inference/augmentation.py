"""Test-time augmentation: several looks at an image, at other scales and mirrored, merged.

Each look is one call of a program that is compiled once for a scale and bucket; whether it is
mirrored is an argument of it. Shapes are static throughout.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, UInt8

from harmonic_jax.checks import check_fields, require
from harmonic_jax.config import Config, ConfigError, MaskRCNNConfig
from harmonic_jax.ops import Suppression, suppress
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training.sharding import DATA_AXIS, replicated, split_batch
from harmonic_jax.training.state import Detector, Variables
from harmonic_jax.training.step import predict

ViewStep = Callable[[Variables, Batch, bool], Detections]
Merge = Callable[[Sequence[Detections], Array], tuple[Detections, Array]]


@dataclasses.dataclass(frozen=True)
class TTA:
    """How an image is looked at, and how the looks are merged."""

    scales: tuple[float, ...] = (0.75, 1.0, 1.25)
    """Factors of the size that the detector was trained for."""
    flip: bool = True
    """Also look at the mirrored image, at every scale."""
    merge: Literal["auto", "nms", "soft_nms", "wbf"] = "auto"
    """`nms`: class by class over all looks; `soft_nms`: Gaussian; `wbf`: weighted boxes fusion;
    `auto`: `wbf`, and `nms` where there are masks, which cannot be fused."""
    merge_iou: float | None = None
    """Overlap of what is one object; None: of `nms` the detector's nms_iou, of `wbf` 0.55."""
    sigma: float = 0.5
    """Of `soft_nms`."""

    def __post_init__(self) -> None:
        check_fields(self, "tta", scales="[0.1, 10]", merge_iou="[0, 1]", sigma="[0.001, 1000]")
        require(
            0 < len(set(self.scales)) == len(self.scales) <= 16,
            "tta.scales",
            self.scales,
            "1 to 16 different factors",
        )
        iou = self.merge_iou
        require(
            iou is None or self.merge != "soft_nms",
            "tta.merge_iou",
            iou,
            "None with merge = soft_nms, which has a sigma instead",
        )

    @property
    def flips(self) -> tuple[bool, ...]:
        return (False, True) if self.flip else (False,)

    @property
    def num_views(self) -> int:
        return len(self.scales) * len(self.flips)


def settled(tta: TTA, config: Config) -> TTA:
    """The same with `auto` replaced by what it means for a detector.

    Raises:
      ConfigError: fused boxes are asked for, and the detector finds masks.
    """
    has_masks = isinstance(config.model, MaskRCNNConfig)
    if tta.merge == "auto":
        return dataclasses.replace(tta, merge="nms" if has_masks else "wbf")
    if tta.merge == "wbf" and has_masks:
        raise ConfigError(
            "tta.merge is 'wbf'; with Mask R-CNN it must be nms or soft_nms: a fused box is none "
            "that a mask was predicted for"
        )
    return tta


def make_view_step(detector: Detector, mesh: Mesh) -> ViewStep:
    """The jitted function of one look: (variables, batch, is_mirrored) -> detections.

    Boxes are in pixels of the original image, not mirrored, whatever the look was.
    """

    def view_step(variables: Variables, batch: Batch, is_mirrored: Bool[Array, ""]) -> Detections:
        return look(functools.partial(predict, detector, variables), batch, is_mirrored)

    everywhere, split = PartitionSpec(), PartitionSpec(DATA_AXIS)
    on_each_device = jax.shard_map(
        view_step,
        mesh=mesh,
        in_specs=(everywhere, split, everywhere),
        out_specs=split,
        check_vma=False,  # as in training.step
    )
    whole = replicated(mesh)
    return jax.jit(
        on_each_device,
        in_shardings=(whole, split_batch(mesh), whole),
        out_shardings=split_batch(mesh),
    )


def look(
    predict: Callable[[Batch], Detections], batch: Batch, is_mirrored: Bool[Array, ""]
) -> Detections:
    """What a predict function sees in a batch, or in its mirror image, in original pixels.

    Args:
      predict: batch -> detections, dividing boxes by `batch.scale`.
      batch: as the loader makes it.
      is_mirrored: mirror the images, and the detections back.
    """
    images = jnp.where(is_mirrored, mirror_images(batch.images, batch.image_size), batch.images)
    # In pixels of the network, where the image's width is a whole number, mirroring is exact.
    found = predict(dataclasses.replace(batch, images=images, scale=jnp.ones_like(batch.scale)))
    mirrored = mirror_detections(found, batch.image_size)
    found = jax.tree.map(lambda a, b: jnp.where(is_mirrored, a, b), mirrored, found)
    xyxy_scale = jnp.tile(batch.scale[:, ::-1], 2)[:, None, :]
    return dataclasses.replace(found, boxes=found.boxes / xyxy_scale)


def mirror_images(
    images: UInt8[Array, "b h w 3"], image_size: Float[Array, "b 2"]
) -> UInt8[Array, "b h w 3"]:
    """Left and right change places within each image; the padding stays where it is.

    >>> pixels = jnp.array([1, 2, 3, 0], jnp.uint8)[None, None, :, None]  # the last is padding
    >>> mirror_images(pixels, jnp.array([[1.0, 3.0]])).ravel().tolist()
    [3, 2, 1, 0]
    """
    column = jnp.arange(images.shape[2])[None, :]
    width = image_size[:, 1:].astype(jnp.int32)
    source = jnp.where(column < width, width - 1 - column, column)
    return jnp.take_along_axis(images, source[:, None, :, None], axis=2)


def mirror_detections(found: Detections, image_size: Float[Array, "b 2"]) -> Detections:
    """x1, x2 become w - x2, w - x1, and masks turn with them."""
    x1, y1, x2, y2 = jnp.moveaxis(found.boxes, -1, 0)
    width = image_size[:, 1:]
    boxes = jnp.stack([width - x2, y1, width - x1, y2], axis=-1)
    return dataclasses.replace(
        found,
        boxes=jnp.where(found.valid[..., None], boxes, 0.0),
        masks=None if found.masks is None else found.masks[..., ::-1],
    )


def make_merge(tta: TTA, config: Config, mesh: Mesh) -> Merge:
    """The jitted function that joins the looks: (views, record_index) -> the same of all views.

    Both come back whole on every process.

    Raises:
      ConfigError: fused boxes are asked for, and the detector finds masks.
    """
    tta, settings = settled(tta, config), config.model.postprocess

    def merge(views: Sequence[Detections], index: Array) -> tuple[Detections, Array]:
        one_image = functools.partial(
            merge_views, tta=tta, nms_iou=settings.nms_iou, num_outputs=settings.max_detections
        )
        joined: Any = jax.tree.map(lambda *rows: jnp.concatenate(rows, axis=1), *views)
        return jax.vmap(one_image)(joined), index

    split = PartitionSpec(DATA_AXIS)
    on_each_device = jax.shard_map(
        merge, mesh=mesh, in_specs=(split, split), out_specs=split, check_vma=False
    )
    return jax.jit(on_each_device, out_shardings=replicated(mesh))


def merge_views(found: Detections, *, tta: TTA, nms_iou: float, num_outputs: int) -> Detections:
    """One set of detections from those of all views.

    Args:
      found: `[n]`, the views' one after the other.
      tta: how to merge, settled.
      nms_iou: of the detector.
      num_outputs: how many detections are kept at most.

    Returns:
      `[num_outputs]`, best first; rows that are not valid hold zeros. A detection that is not
      changed by the merge keeps its mask.
    """
    is_broken = jnp.isnan(found.scores).any()  # see detectors.non_finite
    found = dataclasses.replace(found, scores=jnp.where(is_broken, 0.0, found.scores))
    match tta.merge:
        case "nms":
            iou = nms_iou if tta.merge_iou is None else tta.merge_iou
            settings = Suppression("class", iou=iou, max_outputs=num_outputs)
        case "soft_nms":
            settings = Suppression("soft_gaussian", sigma=tta.sigma, max_outputs=num_outputs)
        case _:
            settings = Suppression(
                "fusion",
                iou=0.55 if tta.merge_iou is None else tta.merge_iou,
                min_score=0.0,
                max_outputs=num_outputs,
                num_views=tta.num_views,
            )
    merged = suppress(found.boxes, found.scores, found.labels, settings, valid=found.valid)
    masks = None if found.masks is None else found.masks[merged.indices]
    return Detections(
        merged.boxes,
        jnp.where(is_broken, jnp.nan, merged.scores),
        merged.labels,
        merged.valid,
        None if masks is None else jnp.where(merged.valid[:, None, None], masks, 0.0),
    )
