"""ImageNet weights for the backbone of any detector."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx

from harmonic_jax.config import BackboneConfig, ModelConfig, VGGConfig
from harmonic_jax.models.resnet import ResNet
from harmonic_jax.pretrained.layout import Layout, fit_state
from harmonic_jax.pretrained.resnet import load_resnet, resnet_name
from harmonic_jax.pretrained.vgg import load_vgg


def load_backbone(
    params: nnx.State, rest: nnx.State, path: str | Path, config: ModelConfig
) -> tuple[nnx.State, nnx.State]:
    """Initialise a detector's backbone from a classifier of torchvision's layout.

    See `resnet.load_resnet` and `vgg.load_vgg`, whose arguments and errors these are; `config` is
    the detector's.
    """
    match config.backbone:
        case BackboneConfig():
            return load_resnet(params, rest, path, config.backbone)
        case VGGConfig():
            return load_vgg(params, rest, path, config.backbone)


def check_classifier(state_dict: Mapping[str, np.ndarray], config: BackboneConfig) -> None:
    """Whether a classifier's weights fit a backbone.

    Raises:
        WeightsError: they do not; the message names the tensors.
    """
    model = nnx.eval_shape(lambda: ResNet(config, rngs=nnx.Rngs(0)))
    params, rest = nnx.state(model, nnx.Param, ...)
    fit_state(params, rest, state_dict, Layout(resnet_name, ignored=("fc.",)))
