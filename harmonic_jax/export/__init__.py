"""A trained detector for those who do not have this package: a program, or plain weights."""

from harmonic_jax.export.program import (
    PLATFORMS,
    BatchSize,
    InferenceFunction,
    export_stablehlo,
    on_canvas,
    on_frames,
)
from harmonic_jax.training.saved_run import read_weights, write_weights

__all__ = [
    "PLATFORMS",
    "BatchSize",
    "InferenceFunction",
    "export_stablehlo",
    "on_canvas",
    "on_frames",
    "read_weights",
    "write_weights",
]
