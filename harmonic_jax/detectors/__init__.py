"""Each detector as a whole: its model joined with its assignment, objective and postprocessing.

A file a family, each with the same two functions; which one serves is decided here, by the type
of the model's config. Ground truth reaches the objective only, never the model.
"""

import jax
from flax import nnx

from harmonic_jax.config import (
    Config,
    FasterRCNNConfig,
    RefineDetConfig,
    RetinaNetConfig,
    SSDConfig,
)
from harmonic_jax.detectors import refinedet, retinanet, ssd, two_stage
from harmonic_jax.objectives.sums import LossSums
from harmonic_jax.structures import Batch, Detections


def loss_sums(
    model: nnx.Module,
    batch: Batch,
    config: Config,
    key: jax.Array,
    *,
    batch_axis: str | None = None,
) -> LossSums:
    """The training losses of a batch.

    Args:
      model: what `models.build_model` made of `config.model`, in training mode.
      batch: images and objects.
      config: the experiment.
      key: for what is drawn at random (the sampling of two-stage detectors); a function of seed
        and step. Draws are made for each image by its `record_index`, so they depend neither on
        its place in the batch nor on the number of devices.
      batch_axis: within `jax.shard_map`, the mesh axis that splits the batch; give the model the
        same (`models.norm.BatchNorm`). None: `batch` is the whole batch.

    Returns:
      Sums over `batch`: with `batch_axis` one device's share, whose sum over the devices is the
      whole; without it, under jit with a sharded batch, the global sums.
    """
    match config.model:
        case RetinaNetConfig():
            return retinanet.loss_sums(model, batch, config, key, batch_axis)
        case SSDConfig():
            return ssd.loss_sums(model, batch, config, key, batch_axis)
        case RefineDetConfig():
            return refinedet.loss_sums(model, batch, config, key, batch_axis)
        case FasterRCNNConfig():
            return two_stage.loss_sums(model, batch, config, key, batch_axis)


def detect(model: nnx.Module, batch: Batch, config: Config) -> Detections:
    """Images -> final boxes, in pixels of the padded image.

    An image for which the network says NaN or infinity has NaN for all its scores, those of rows
    that are not valid too: see `non_finite`.

    Args:
      model: what `models.build_model` made of `config.model`, in evaluation mode.
      batch: images; ground truth is not looked at.
      config: the experiment.
    """
    match config.model:
        case RetinaNetConfig():
            return retinanet.detect(model, batch, config)
        case SSDConfig():
            return ssd.detect(model, batch, config)
        case RefineDetConfig():
            return refinedet.detect(model, batch, config)
        case FasterRCNNConfig():
            return two_stage.detect(model, batch, config)
