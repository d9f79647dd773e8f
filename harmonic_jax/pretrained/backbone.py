"""ImageNet weights for the backbone of any detector."""

from pathlib import Path

from flax import nnx

from harmonic_jax.config import BackboneConfig, ModelConfig, VGGConfig
from harmonic_jax.models import build_model
from harmonic_jax.pretrained.resnet import load_resnet
from harmonic_jax.pretrained.vgg import load_vgg


def load_backbone(
    params: nnx.State, model_state: nnx.State, path: str | Path, config: ModelConfig
) -> tuple[nnx.State, nnx.State]:
    """Initialise a detector's backbone from a classifier of torchvision's layout.

    See `resnet.load_resnet` and `vgg.load_vgg`, whose arguments and errors these are; `config` is
    the detector's.
    """
    match config.backbone:
        case BackboneConfig():
            return load_resnet(params, model_state, path, config.backbone)
        case VGGConfig():
            return load_vgg(params, model_state, path, config.backbone)


def check_classifier(path: str | Path, config: ModelConfig) -> None:
    """Whether a classifier's file fits the backbone of a detector; see `load_backbone`."""
    model = nnx.eval_shape(lambda: build_model(config, 1, rngs=nnx.Rngs(0)))
    params, model_state = nnx.state(model, nnx.Param, ...)
    load_backbone(params, model_state, path, config)
