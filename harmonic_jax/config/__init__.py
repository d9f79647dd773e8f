"""Configuration: frozen dataclasses, checked when they are made and never changed after.

A file in `configs/` builds one `Config`; the command line replaces single fields by their path
(`--optim.learning-rate 0.02`). Every check names the field, its value and what is legal.
"""

from harmonic_jax.checks import ConfigError
from harmonic_jax.config.experiment import Config
from harmonic_jax.config.loss import BoxLoss, ClsLoss, FactorGradient, FactorSource, LossConfig
from harmonic_jax.config.models import ModelConfig
from harmonic_jax.config.parts import AnchorConfig, BackboneConfig, MatchConfig, PostprocessConfig
from harmonic_jax.config.refinedet import RefineDetConfig
from harmonic_jax.config.retinanet import RetinaNetConfig
from harmonic_jax.config.rivals import RIVALS
from harmonic_jax.config.ssd import (
    DefaultBoxConfig,
    MultiBoxMatchConfig,
    MultiBoxPostprocessConfig,
    SSDConfig,
    VGGConfig,
)
from harmonic_jax.config.training import OptimConfig, TrainConfig
from harmonic_jax.config.two_stage import (
    BoxHeadConfig,
    FasterRCNNConfig,
    MaskHeadConfig,
    MaskRCNNConfig,
    RoIAlignConfig,
    RoIPostprocessConfig,
    RPNConfig,
)
from harmonic_jax.data.settings import AugmentConfig, DataConfig

__all__ = [
    "RIVALS",
    "AnchorConfig",
    "AugmentConfig",
    "BackboneConfig",
    "BoxHeadConfig",
    "BoxLoss",
    "ClsLoss",
    "Config",
    "ConfigError",
    "DataConfig",
    "DefaultBoxConfig",
    "FactorGradient",
    "FactorSource",
    "FasterRCNNConfig",
    "LossConfig",
    "MaskHeadConfig",
    "MaskRCNNConfig",
    "MatchConfig",
    "ModelConfig",
    "MultiBoxMatchConfig",
    "MultiBoxPostprocessConfig",
    "OptimConfig",
    "PostprocessConfig",
    "RPNConfig",
    "RefineDetConfig",
    "RetinaNetConfig",
    "RoIAlignConfig",
    "RoIPostprocessConfig",
    "SSDConfig",
    "TrainConfig",
    "VGGConfig",
]
