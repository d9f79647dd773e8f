"""Names and layouts of foreign checkpoints: files of other libraries -> state of our models."""

from harmonic_jax.pretrained.convert import load_backbone, load_detector
from harmonic_jax.pretrained.files import WeightsError, read_state_dict, write_state_dict
from harmonic_jax.pretrained.torchvision import detector_layout

__all__ = [
    "WeightsError",
    "detector_layout",
    "load_backbone",
    "load_detector",
    "read_state_dict",
    "write_state_dict",
]
