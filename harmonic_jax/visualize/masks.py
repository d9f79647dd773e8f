"""Masks on one image: half-transparent, with their outline."""

from collections.abc import Sequence

import cv2
import numpy as np

from harmonic_jax.visualize.boxes import INK, Color

OPACITY = 0.45


def draw_masks(
    canvas: np.ndarray, masks: Sequence[np.ndarray], color: Color, *, filled: bool
) -> None:
    """Draws masks into an image.

    Args:
      canvas: uint8 [h, w, 3], RGB; changed in place.
      masks: bool [h', w'] each, of this picture at any size; stretched to the canvas.
      color: RGB.
      filled: tint the inside too, else the outlines alone are drawn.
    """
    height, width = canvas.shape[:2]
    scaled = [
        cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5
        for mask in masks
    ]
    for mask in scaled if filled else []:
        tinted = canvas[mask] * (1 - OPACITY) + np.array(color) * OPACITY
        canvas[mask] = np.round(tinted).astype(np.uint8)
    # Outlines last, so that no other object's tint covers them.
    for mask in scaled:
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, INK, 3)
        cv2.drawContours(canvas, outlines, -1, color, 1)
