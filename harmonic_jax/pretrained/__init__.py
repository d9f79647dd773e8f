"""Names and layouts of foreign checkpoints: files of other libraries -> state of our models."""

from harmonic_jax.pretrained.backbone import load_backbone
from harmonic_jax.pretrained.detector import detector_layout, load_detector
from harmonic_jax.pretrained.errors import WeightsError
from harmonic_jax.pretrained.files import read_state_dict, write_state_dict

__all__ = [
    "WeightsError",
    "detector_layout",
    "load_backbone",
    "load_detector",
    "read_state_dict",
    "write_state_dict",
]
