"""One file a detector: settings, module, targets, loss, detections, top to bottom.

Ground truth reaches the losses only, never a module. What is trained is `nnx.Param`; running
statistics are `nnx.BatchStat`; what the settings freeze is `Frozen`: `nnx.split(model, nnx.Param,
...)` separates what an optimizer may touch.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.detectors import faster_rcnn, mask_rcnn, refinedet, retinanet, rtdetr, ssd
from harmonic_jax.detectors.faster_rcnn import FasterRCNN, FasterRCNNConfig
from harmonic_jax.detectors.mask_rcnn import MaskRCNN, MaskRCNNConfig
from harmonic_jax.detectors.parts.objective import LossConfig, LossSums
from harmonic_jax.detectors.refinedet import RefineDet, RefineDetConfig
from harmonic_jax.detectors.retinanet import RetinaNet, RetinaNetConfig
from harmonic_jax.detectors.rtdetr import RTDETR, RTDETRConfig
from harmonic_jax.detectors.ssd import SSD, SSDConfig
from harmonic_jax.structures import Batch, Detections

__all__ = ["ModelConfig", "build_model", "detect", "loss_sums"]

ModelConfig = (
    RetinaNetConfig | SSDConfig | RefineDetConfig | FasterRCNNConfig | MaskRCNNConfig | RTDETRConfig
)


def build_model(
    config: ModelConfig, num_classes: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
) -> nnx.Module:
    """The detector that its settings describe, with random weights.

    Args:
        config: its settings; their type chooses the detector.
        num_classes: number of object classes, without background; at least 1.
        dtype: compute type of the network, float32 or bfloat16; parameters are float32 always.
        rngs: the random stream of the initial weights.

    Returns:
        The module, in training mode; `model.eval()` uses the running statistics.

    Raises:
        ValueError: num_classes is below 1.

    Example:
        >>> import jax
        >>> from harmonic_jax.backbones import ResNetConfig
        >>> config = RetinaNetConfig(backbone=ResNetConfig(depth=18, width=8), channels=16)
        >>> def init(key):
        ...     model = build_model(config, 10, rngs=nnx.Rngs(key))
        ...     return nnx.split(model, nnx.Param, ...)[1:]
        >>> params, others = jax.eval_shape(init, jax.random.key(0))
        >>> params["cls_head"]["output"]["kernel"].shape  # 9 anchors of 10 classes
        (3, 3, 16, 90)
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; it must be >= 1")
    match config:
        case RetinaNetConfig():
            return RetinaNet(config, num_classes, dtype=dtype, rngs=rngs)
        case SSDConfig():
            return SSD(config, num_classes, dtype=dtype, rngs=rngs)
        case RefineDetConfig():
            return RefineDet(config, num_classes, dtype=dtype, rngs=rngs)
        case MaskRCNNConfig():  # before its base class
            return MaskRCNN(config, num_classes, dtype=dtype, rngs=rngs)
        case FasterRCNNConfig():
            return FasterRCNN(config, num_classes, dtype=dtype, rngs=rngs)
        case RTDETRConfig():
            return RTDETR(config, num_classes, dtype=dtype, rngs=rngs)


def loss_sums(
    model: nnx.Module,
    batch: Batch,
    loss: LossConfig,
    key: jax.Array,
    *,
    batch_axis: str | None = None,
) -> LossSums:
    """The training losses of a batch.

    Args:
      model: what `build_model` made, in training mode.
      batch: images and objects.
      loss: which losses, and their constants.
      key: for what is drawn at random (the sampling of two-stage detectors); a function of seed
        and step. Draws are made for each image by its `record_index`, so they depend neither on
        its place in the batch nor on the number of devices.
      batch_axis: within `jax.shard_map`, with `check_vma=False`, the mesh axis that splits the
        batch; give the model the same (`backbones.norm.BatchNorm`). None: `batch` is the whole
        batch.

    Returns:
      Sums over `batch`: with `batch_axis` one device's share, whose sum over the devices is the
      whole; without it, under jit with a sharded batch, the global sums.
    """
    if batch.ground_truth.boxes.shape[1] == 0:
        raise ValueError("the ground truth has room for no object; pad it to one or more")
    sums: LossSums = _family(model).loss_sums(model, batch, loss, key, batch_axis)
    return sums


def detect(model: nnx.Module, batch: Batch, *, masks: bool = True) -> Detections:
    """Images -> final boxes, in pixels of the padded image.

    An image for which the network says NaN or infinity has NaN for all its scores, those of rows
    that are not valid too: see `parts.selection.non_finite_images`.

    Args:
      model: what `build_model` made, in evaluation mode.
      batch: images; ground truth is not looked at.
      masks: find those too, if the detector can.

    Returns:
      `Detections` [b d], best first.
    """
    is_boxes_alone = isinstance(model, MaskRCNN) and not masks
    family = faster_rcnn if is_boxes_alone else _family(model)
    found: Detections = family.detect(model, batch)
    return found


def _family(model: nnx.Module) -> Any:
    match model:
        case RetinaNet():
            return retinanet
        case SSD():
            return ssd
        case RefineDet():
            return refinedet
        case MaskRCNN():  # before its base class
            return mask_rcnn
        case FasterRCNN():
            return faster_rcnn
        case RTDETR():
            return rtdetr
    raise TypeError(f"model is a {type(model).__name__}; it must be a detector of build_model")
