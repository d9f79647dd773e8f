"""What readers look at: the consistency report as a page, charts, and boxes on photos."""

from harmonic_jax.report.boxes import LabelledBoxes, detection_grid, draw_objects, save_png
from harmonic_jax.report.cases import Images
from harmonic_jax.report.comparison import write_comparison
from harmonic_jax.report.page import write_page
from harmonic_jax.report.plots import plot_loss_curves

__all__ = [
    "Images",
    "LabelledBoxes",
    "detection_grid",
    "draw_objects",
    "plot_loss_curves",
    "save_png",
    "write_comparison",
    "write_page",
]
