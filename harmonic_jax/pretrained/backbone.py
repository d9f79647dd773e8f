"""ImageNet weights for the backbone of any detector."""

from pathlib import Path

from flax import nnx

from harmonic_jax.config import BackboneConfig, ModelConfig
from harmonic_jax.pretrained.files import WeightsError
from harmonic_jax.pretrained.resnet import load_resnet


def load_backbone(
    params: nnx.State, rest: nnx.State, path: str | Path, config: ModelConfig
) -> tuple[nnx.State, nnx.State]:
    """Initialise a detector's backbone from a classifier of torchvision's layout.

    See `resnet.load_resnet`, whose arguments and errors these are; `config` is the detector's.
    """
    match config.backbone:
        case BackboneConfig():
            return load_resnet(params, rest, path, config.backbone)
    raise WeightsError(f"no weights are known for a {type(config.backbone).__name__}")
