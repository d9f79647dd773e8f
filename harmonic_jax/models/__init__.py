"""Detectors in flax nnx: uint8 images in, `structures.Predictions` out; never ground truth.

What is trained is `nnx.Param`; running statistics are `nnx.BatchStat`; what a config freezes is
`Frozen`. `nnx.split(model, nnx.Param, ...)` therefore separates what an optimizer may touch.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from harmonic_jax.config import (
    FasterRCNNConfig,
    MaskRCNNConfig,
    ModelConfig,
    RefineDetConfig,
    RetinaNetConfig,
    SSDConfig,
)
from harmonic_jax.models.conv import Frozen
from harmonic_jax.models.faster_rcnn import FasterRCNN
from harmonic_jax.models.mask_rcnn import MaskRCNN
from harmonic_jax.models.refinedet import RefineDet
from harmonic_jax.models.retinanet import RetinaNet
from harmonic_jax.models.ssd import SSD

__all__ = ["SSD", "FasterRCNN", "Frozen", "MaskRCNN", "RefineDet", "RetinaNet", "build_model"]


def build_model(
    config: ModelConfig, num_classes: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
) -> nnx.Module:
    """Build the detector that a config describes, with random weights.

    Args:
        config: a model config; its type chooses the detector.
        num_classes: number of object classes, without background; at least 1.
        dtype: compute type of the network, float32 or bfloat16; parameters are float32 always.
        rngs: the random stream of the initial weights.

    Returns:
        The module, in training mode; `model.eval()` uses the running statistics.

    Raises:
        ValueError: num_classes is below 1.

    Example:
        >>> import jax
        >>> from harmonic_jax.config import BackboneConfig
        >>> config = RetinaNetConfig(backbone=BackboneConfig(depth=18, width=8), channels=16)
        >>> def init(key):
        ...     model = build_model(config, 10, rngs=nnx.Rngs(key))
        ...     return nnx.split(model, nnx.Param, ...)[1:]
        >>> params, rest = jax.eval_shape(init, jax.random.key(0))
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
