"""Draws docs/losses_*.png: values and gradients of the losses, computed by the losses themselves.

python docs/plots/loss_surfaces.py
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from harmonic_jax import losses
from harmonic_jax.losses import rivals
from harmonic_jax.report.plots import CURVES, chart_style, new_axes, save_panels

DOCS = Path(__file__).parent.parent
MODES: tuple[losses.FactorGradient, ...] = ("through", "stop", "cls_only")
NOTE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}


def main() -> None:
    with chart_style():
        save_panels(DOCS / "losses_coupling.png", *coupling())
        save_panels(DOCS / "losses_hardet_terms.png", hardet_terms())
        save_panels(DOCS / "losses_rivals.png", *losses_compared())


def coupling() -> list[list[Axes]]:
    """Both derivatives of the Harmonic loss in the plane of its arguments, in every mode."""
    axis = np.linspace(0.0, 5.0, 201)
    cls, loc = (jnp.asarray(a) for a in np.meshgrid(axis, axis))
    rows: list[list[Axes]] = [[], []]
    for mode in MODES:

        def total(cls: jax.Array, loc: jax.Array, mode: losses.FactorGradient = mode) -> jax.Array:
            return losses.harmonic_loss(cls, loc, factor_gradient=mode).sum()

        for row, slope, name, words, at in zip(
            rows,
            jax.grad(total, argnums=(0, 1))(cls, loc),
            ("dF/dC", "dF/dL"),
            ("confidence\nis lowered", "the box is\npushed away"),
            ((1.0, 4.2), (3.1, 0.75)),
            strict=True,
        ):
            is_last = mode == MODES[-1]
            axes = new_axes(f'{name}, "{mode}"', width=3.8 if is_last else 3.2, height=3.1)
            shades = axes.pcolormesh(axis, axis, slope, cmap="PuOr_r", vmin=-2.2, vmax=2.2)
            if np.min(slope) < 0:
                axes.contour(axis, axis, slope, levels=[0.0], colors="black", linewidths=1.5)
                axes.contourf(axis, axis, slope, levels=[-9, 0], colors="none", hatches=["///"])
                axes.annotate(words, at, ha="center", va="center", bbox=NOTE)
            axes.set(xlabel="classification loss C", ylabel="localization loss L")
            if is_last:
                axes.figure.colorbar(shades, label="slope; hatched where it is below 0")
            row.append(axes)
    return rows


def hardet_terms() -> list[Axes]:
    """The Harmonic IoU loss and its slope, and the task-contrastive loss."""
    value, slope = new_axes(""), new_axes("")
    contrast = new_axes("task-contrastive loss (H = 0.5)", width=4.4)
    iou = jnp.linspace(0.0, 1.0, 201)
    for gamma, line in zip((0.0, 0.5, 0.8, 1.0, 2.0), CURVES, strict=False):

        def loss(u: jax.Array, gamma: float = gamma) -> jax.Array:
            return losses.harmonic_iou_loss(u, gamma=gamma)

        label = {0.0: "0 (1 - IoU)", 0.8: "0.8 (default)"}.get(gamma, str(gamma))
        _line(value, iou, loss(iou), line, label)
        _line(slope, iou, jax.grad(lambda u, f=loss: f(u).sum())(iou), line, label)
    _axes(value, "IoU", "Harmonic IoU loss", legend="gamma")
    _axes(slope, "IoU", "its slope")
    slope.axhline(0.0, color="grey", linewidth=0.8)
    slope.annotate("above gamma = 1 worse boxes\nare rewarded here", (0.3, 0.35), fontsize=8)

    p, u = (jnp.asarray(a) for a in np.meshgrid(np.linspace(0, 1, 201), np.linspace(0, 1, 201)))
    tc = losses.task_contrastive_loss(p, u, jnp.full(p.shape, 0.5))
    shades = contrast.pcolormesh(p, u, tc, cmap="cividis")
    contrast.contourf(p, u, u - p, levels=[0.2, 2], colors="none", hatches=["///"])
    words = {
        'score is raised,\nIoU pushed down\n(by "through")': (0.28, 0.68),
        'score is lowered,\nIoU pulled up\n(by "through")': (0.74, 0.13),
    }
    for text, at in words.items():
        contrast.annotate(text, at, ha="center", fontsize=8, bbox=NOTE)
    _axes(contrast, "score p", "IoU")
    contrast.figure.colorbar(shades)
    return [value, slope, contrast]


def losses_compared() -> list[list[Axes]]:
    """Classification of a positive whose box has IoU 0.7, and a box that slides away."""
    grid = [[new_axes("", width=5.0) for _ in range(2)] for _ in range(2)]
    prob = jnp.linspace(0.01, 0.99, 197)
    logits = jnp.log(prob / (1 - prob))[:, None]
    labels, target = jnp.zeros(prob.shape, int), jnp.full(prob.shape, 0.7)
    of_scores: dict[str, Callable[[jax.Array], jax.Array]] = {
        "focal": lambda x: losses.sigmoid_focal_loss(x, labels),
        "cross entropy": lambda x: losses.sigmoid_cross_entropy(x, labels),
        "quality focal": lambda x: rivals.quality_focal_loss(x, labels, target),
        "varifocal": lambda x: rivals.varifocal_loss(x, labels, target),
    }
    for (name, loss), line in zip(of_scores.items(), CURVES, strict=False):
        _line(grid[0][0], prob, loss(logits)[:, 0], line, name)
        slope = jax.grad(lambda x, f=loss: f(x).sum())(logits)
        _line(grid[0][1], prob, slope[:, 0], line, name)
    _axes(grid[0][0], "score of the true class", "loss", legend="a positive with IoU 0.7")
    _axes(grid[0][1], "score of the true class", "slope by the logit")
    for place in grid[0]:
        place.axvline(0.7, color="grey", linewidth=0.8)
    grid[0][0].set_ylim(0, 3)
    grid[0][1].axhline(0.0, color="grey", linewidth=0.8)

    shift = jnp.linspace(0.0, 1.5, 301)[1:]
    box = jnp.array([0.0, 0.0, 1.0, 1.0])
    of_boxes = {
        "1 - IoU": losses.iou_loss,
        "GIoU": losses.giou_loss,
        "DIoU (CIoU is equal here)": losses.diou_loss,
        "EIoU": losses.eiou_loss,
        "Harmonic IoU, 0.8": lambda a, b: losses.harmonic_iou_loss(losses.aligned_iou(a, b)),
    }

    def moved(shift: jax.Array) -> jax.Array:
        larger = box * 1.2 - 0.1  # around the same centre
        return larger[None] + shift[:, None] * jnp.array([[1.0, 0.0, 1.0, 0.0]])

    for (name, of_pairs), line in zip(of_boxes.items(), CURVES, strict=False):

        def of_shift(s: jax.Array, loss: Callable[..., jax.Array] = of_pairs) -> jax.Array:
            return loss(moved(s), jnp.broadcast_to(box, (len(s), 4)))

        _line(grid[1][0], shift, of_shift(shift), line, name)
        slope = jax.grad(lambda s, f=of_shift: f(s).sum())(shift)
        _line(grid[1][1], shift, slope, line, name)
    place = "shift of a box 1.2 times as large, in widths"
    _axes(grid[1][0], place, "loss", legend="boxes")
    _axes(grid[1][1], place, "slope by the shift")
    grid[1][1].axhline(0.0, color="grey", linewidth=0.8)
    return grid


def _line(place: Axes, x: jax.Array, y: jax.Array, line: tuple[str, object], label: str) -> None:
    colour, dashes = line
    place.plot(x, y, color=colour, linestyle=dashes, label=label)


def _axes(place: Axes, x: str, y: str, *, legend: str | None = None) -> None:
    place.set_xlabel(x)
    place.set_ylabel(y)
    place.margins(x=0)
    if legend:
        place.legend(title=legend)


if __name__ == "__main__":
    main()
