"""Pictures of detections and curves of a run; files and arrays only, no display.

Truth is a dashed blue line, prediction a solid orange one: two colours of Okabe and Ito's palette
that every kind of colour vision tells apart, and two line styles for prints without colour.
"""

from harmonic_jax.visualize.boxes import (
    PREDICTION_COLOR,
    TRUTH_COLOR,
    LabelledBoxes,
    draw_boxes,
)
from harmonic_jax.visualize.curves import plot_loss_curves
from harmonic_jax.visualize.grid import detection_grid, save_png

__all__ = [
    "PREDICTION_COLOR",
    "TRUTH_COLOR",
    "LabelledBoxes",
    "detection_grid",
    "draw_boxes",
    "plot_loss_curves",
    "save_png",
]
