"""Test-time augmentation: several looks at an image, at other scales and mirrored, merged.

Each look is one call of a program that is compiled once for a scale and bucket; whether it is
mirrored is an argument of it. Shapes are static throughout.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, UInt8

from harmonic_jax.checks import check_fields, require
from harmonic_jax.config import Config, ConfigError, MaskRCNNConfig
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.sample import empty_batch, load_sample
from harmonic_jax.inference.images import shapes_at
from harmonic_jax.ops import Suppression, suppress
from harmonic_jax.structures import Batch, Detections
from harmonic_jax.training.sharding import DATA_AXIS, put_batch, replicated, split_batch
from harmonic_jax.training.state import Detector, Variables
from harmonic_jax.training.step import PredictStep, predict

_EVERYWHERE, _SPLIT = PartitionSpec(), PartitionSpec(DATA_AXIS)


@dataclasses.dataclass(frozen=True)
class TTA:
    """How an image is looked at, and how the looks are merged."""

    scales: Annotated[tuple[float, ...], "[0.1, 10]"] = (0.75, 1.0, 1.25)
    """Factors of the size that the detector was trained for."""
    flip: bool = True
    """Also look at the mirrored image, at every scale."""
    merge: Literal["auto", "nms", "soft_nms", "wbf"] = "auto"
    """`nms`: class by class over all looks; `soft_nms`: Gaussian; `wbf`: weighted boxes fusion;
    `auto`: `wbf`, and `nms` where there are masks, which cannot be fused."""
    merge_iou: Annotated[float | None, "[0, 1]"] = None
    """Overlap of what is one object; None: of `nms` the detector's nms_iou, of `wbf` 0.55."""

    def __post_init__(self) -> None:
        check_fields(self, "tta")
        require(
            0 < len(set(self.scales)) == len(self.scales) <= 16,
            "tta.scales",
            self.scales,
            "1 to 16 different factors",
        )
        require(
            self.merge_iou is None or self.merge != "soft_nms",
            "tta.merge_iou",
            self.merge_iou,
            "None with merge = soft_nms",
        )

    @property
    def flips(self) -> tuple[bool, ...]:
        return (False, True) if self.flip else (False,)


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


class AugmentedPredict:
    """Predicts with test-time augmentation; compiles one program for each shape that it sees.

    Args:
      detector: the model and its config.
      mesh: all devices.
      tta: the looks, and how they are merged.

    Raises:
      ConfigError: fused boxes are asked for, and the detector finds masks.
    """

    def __init__(self, detector: Detector, mesh: Mesh, tta: TTA) -> None:
        self.tta = tta
        self._data, self._mesh = detector.config.data, mesh
        settings = _suppression(settled(tta, detector.config), detector.config)

        def look_at(variables: Variables, batch: Batch, is_mirrored: Array) -> Detections:
            return look(functools.partial(predict, detector, variables), batch, is_mirrored)

        def merge(views: Sequence[Detections], index: Array) -> tuple[Detections, Array]:
            joined: Any = jax.tree.map(lambda *rows: jnp.concatenate(rows, axis=1), *views)
            return jax.vmap(lambda found: merge_views(found, settings))(joined), index

        whole, rows = replicated(mesh), split_batch(mesh)
        self.look = jax.jit(
            _on_each_device(look_at, mesh, (_EVERYWHERE, _SPLIT, _EVERYWHERE)),
            in_shardings=(whole, rows, whole),
            out_shardings=rows,
        )
        self.merge = jax.jit(_on_each_device(merge, mesh, (_SPLIT, _SPLIT)), out_shardings=whole)

    def __call__(
        self, variables: Variables, batch_at: Callable[[float], Batch]
    ) -> tuple[Detections, Array]:
        """The merged detections and the record indices, whole on every process.

        Args:
          variables: of the detector.
          batch_at: gives the same images at a scale.
        """
        views, index = [], None  # of the images, the same at every scale
        for scale in self.tta.scales:
            batch = batch_at(scale)
            views += [self.look(variables, batch, flip) for flip in self.tta.flips]
            index = batch.record_index
        return self.merge(views, index)

    def on_source(self, source: DetectionSource) -> PredictStep:
        """A predict step for `training.evaluation.evaluate`, to be called on every process alike.

        The images of a batch are loaded anew from their files for every scale.

        Raises:
          ConfigError: a scale makes sides that are too small or too large.
        """
        for bucket in self._data.buckets:
            for scale in self.tta.scales:
                shapes_at(self._data, bucket, scale)  # refuses now what cannot be

        def at(batch: Batch, scale: float) -> Batch:
            return batch if scale == 1.0 else self._load(source, batch, scale)

        return lambda variables, batch: self(variables, functools.partial(at, batch))

    def _load(self, source: DetectionSource, batch: Batch, scale: float) -> Batch:
        """The images of a batch at another size."""
        _, height, width, _ = batch.images.shape
        data, bucket = shapes_at(self._data, (height, width), scale)
        # Those of the rows that this process holds.
        shards = {s.index[0].start or 0: s.data for s in batch.record_index.addressable_shards}
        indices = np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
        loaded, side = empty_batch(len(indices), bucket, data), data.short_sides[-1]

        def load(row: int) -> None:
            index = int(indices[row])
            load_sample(source, index, data, loaded, row, short_side=side, rng=None)

        with ThreadPoolExecutor(data.num_threads) as pool:
            list(pool.map(load, range(len(indices))))
        return put_batch(loaded, self._mesh)


def _on_each_device(function: Callable[..., Any], mesh: Mesh, in_specs: Any) -> Callable[..., Any]:
    return jax.shard_map(  # check_vma: as in training.step
        function, mesh=mesh, in_specs=in_specs, out_specs=_SPLIT, check_vma=False
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


def merge_views(found: Detections, settings: Suppression) -> Detections:
    """One set of detections of an image from those of all views.

    Args:
      found: `[n]`, the views' one after the other.
      settings: how to merge, and how many are kept at most.

    Returns:
      `[settings.max_outputs]`, best first; rows that are not valid hold zeros. A detection that is
      not changed by the merge keeps its mask.
    """
    is_broken = jnp.isnan(found.scores).any()  # see detectors.non_finite
    scores = jnp.where(is_broken, 0.0, found.scores)
    merged = suppress(found.boxes, scores, found.labels, settings, valid=found.valid)
    masks = None if found.masks is None else found.masks[merged.indices]
    return Detections(
        merged.boxes,
        jnp.where(is_broken, jnp.nan, merged.scores),
        merged.labels,
        merged.valid,
        None if masks is None else jnp.where(merged.valid[:, None, None], masks, 0.0),
    )


def _suppression(tta: TTA, config: Config) -> Suppression:
    """The settings of a merge that is settled."""
    detector = config.model.postprocess
    num_outputs, iou = detector.max_detections, tta.merge_iou
    match tta.merge:
        case "nms":
            iou = detector.nms_iou if iou is None else iou
            return Suppression("class", iou=iou, max_outputs=num_outputs)
        case "soft_nms":
            return Suppression("soft_gaussian", max_outputs=num_outputs)
    return Suppression(
        "fusion",
        iou=0.55 if iou is None else iou,
        min_score=0.0,
        max_outputs=num_outputs,
        num_views=len(tta.scales) * len(tta.flips),
    )
