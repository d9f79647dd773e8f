"""All detectors: a model's config is one of these, and its type chooses the code."""

from harmonic_jax.config.retinanet import RetinaNetConfig
from harmonic_jax.config.ssd import SSDConfig

ModelConfig = RetinaNetConfig | SSDConfig
