"""Raw predictions -> `Detections`, with static shapes."""

from harmonic_jax.postprocess.dense import postprocess_dense

__all__ = ["postprocess_dense"]
