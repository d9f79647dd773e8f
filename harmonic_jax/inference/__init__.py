"""A trained run, used: images in, boxes in the image's own pixels out."""

from harmonic_jax.inference.augmentation import TTA
from harmonic_jax.inference.detections import ImageDetections, draw_detections
from harmonic_jax.inference.detector import LoadedDetector, load

__all__ = ["TTA", "ImageDetections", "LoadedDetector", "draw_detections", "load"]
