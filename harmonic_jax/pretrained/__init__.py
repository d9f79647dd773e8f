"""Names and layouts of foreign checkpoints: files of other libraries -> state of our models."""

from harmonic_jax.pretrained.files import WeightsError, read_state_dict
from harmonic_jax.pretrained.resnet import load_backbone
from harmonic_jax.pretrained.retinanet import load_torchvision_retinanet

__all__ = ["WeightsError", "load_backbone", "load_torchvision_retinanet", "read_state_dict"]
