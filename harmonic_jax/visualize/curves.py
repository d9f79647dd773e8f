"""Losses and scores over the steps of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from harmonic_jax.files import replacing


def plot_loss_curves(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a PNG of the losses over the steps, and of AP where the run was evaluated.

    Args:
      path: The file.
      rows: Rows of the run's log: "step", and numbers by name. Names that are "loss" or end in
        "_loss" are drawn on the left, "AP", "AP50", "AP75" and "mask_AP" on the right. Of several
        rows with the same step the last counts; numbers that are not finite are left out.
    """
    names = sorted({name for row in rows for name in row}, key=lambda name: (name != "loss", name))
    losses = [name for name in names if name == "loss" or name.endswith("_loss")]
    scores = [name for name in ("AP", "AP50", "AP75", "mask_AP") if name in names]
    figure = Figure(figsize=(11 if scores else 7, 4.2), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    _plot(panels[0], rows, losses, "loss", marker="")
    if any((_series(rows, name)[1] > 0).any() for name in losses):
        panels[0].set_yscale("log", nonpositive="mask")
        panels[0].yaxis.set_major_formatter("{x:g}")
    if scores:
        _plot(panels[1], rows, scores, "average precision", marker="o")
        panels[1].set_ylim(0, 1)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


# Okabe and Ito's palette without yellow, which is faint on white.
_CURVES = ("#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = {row["step"]: row[name] for row in rows if name in row}
    steps, values = np.array(sorted(points.items()), float).reshape(-1, 2).T
    is_finite = np.isfinite(values)
    return steps[is_finite], values[is_finite]


def _plot(
    panel: Any, rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str, *, marker: str
) -> None:
    for i, name in enumerate(names):
        steps, values = _series(rows, name)
        is_noisy = not marker and len(values) > 40
        color = _CURVES[i % len(_CURVES)]
        panel.plot(
            steps, values, color=color, marker=marker, lw=1 if is_noisy else 1.8,
            alpha=0.25 if is_noisy else 1.0, label=None if is_noisy else name,
        )  # fmt: skip
        if is_noisy:
            panel.plot(steps, _smooth(values), color=color, lw=1.8, label=name)
    panel.set_title(title, loc="left")
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    if names:
        panel.legend(edgecolor="none", framealpha=0.8)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a 20th of the curve; shorter at the ends."""
    half = max(len(values) // 40, 1)
    total = np.cumsum(np.concatenate([[0.0], values]))
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)
