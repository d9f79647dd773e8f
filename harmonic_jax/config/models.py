"""All detectors: a model's config is one of these, and its type chooses the code."""

from harmonic_jax.config.refinedet import RefineDetConfig
from harmonic_jax.config.retinanet import RetinaNetConfig
from harmonic_jax.config.ssd import SSDConfig
from harmonic_jax.config.two_stage import FasterRCNNConfig, MaskRCNNConfig

ModelConfig = RetinaNetConfig | SSDConfig | RefineDetConfig | FasterRCNNConfig | MaskRCNNConfig
