"""Draws docs/losses_*.png: values and gradients of the losses, computed by the losses themselves.

python docs/plots/loss_surfaces.py
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harmonic_jax import losses
from harmonic_jax.losses import rivals

DOCS = Path(__file__).parent.parent
MODES: tuple[losses.FactorGradient, ...] = ("through", "stop", "cls_only")
# Okabe and Ito's colours, told apart by colour-blind readers, with dashes for everyone else.
LINES = [
    ("#000000", "-"), ("#0072B2", "--"), ("#D55E00", "-."), ("#009E73", ":"),
    ("#CC79A7", (0, (5, 1))), ("#E69F00", (0, (3, 1, 1, 1))), ("#56B4E9", (0, (1, 1))),
]  # fmt: skip


def main() -> None:
    for name, draw in {
        "losses_coupling": coupling,
        "losses_hardet_terms": hardet_terms,
        "losses_rivals": losses_compared,
    }.items():
        figure = draw()
        figure.savefig(DOCS / f"{name}.png", dpi=100)
        plt.close(figure)


def coupling() -> Figure:
    """Both derivatives of the Harmonic loss in the plane of its arguments, in every mode."""
    axis = np.linspace(0.0, 5.0, 201)
    cls, loc = (jnp.asarray(a) for a in np.meshgrid(axis, axis))
    figure, grid = plt.subplots(2, 3, figsize=(9.6, 6.2), sharex=True, sharey=True)
    for column, mode in enumerate(MODES):

        def total(cls: jax.Array, loc: jax.Array, mode: losses.FactorGradient = mode) -> jax.Array:
            return losses.harmonic_loss(cls, loc, factor_gradient=mode).sum()

        slopes = jax.grad(total, argnums=(0, 1))(cls, loc)
        for row, (slope, name, words) in enumerate(
            zip(
                slopes,
                ("dF/dC", "dF/dL"),
                ("confidence\nis lowered", "the box is\npushed away"),
                strict=True,
            )
        ):
            place = grid[row, column]
            shades = place.pcolormesh(
                axis, axis, slope, cmap="PuOr_r", vmin=-2.2, vmax=2.2, rasterized=True
            )
            if np.min(slope) < 0:
                place.contour(axis, axis, slope, levels=[0.0], colors="black", linewidths=1.5)
                place.contourf(axis, axis, slope, levels=[-9, 0], colors="none", hatches=["///"])
                at = (1.0, 4.2) if row == 0 else (3.1, 0.75)
                place.annotate(
                    words,
                    at,
                    ha="center",
                    va="center",
                    fontsize=9,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
                )
            if row == 0:
                place.set_title(f'"{mode}"')
            else:
                place.set_xlabel("classification loss C")
            if column == 0:
                place.set_ylabel(f"{name}\n\nlocalization loss L")
    figure.subplots_adjust(left=0.09, right=0.9, top=0.94, bottom=0.09, wspace=0.08, hspace=0.08)
    bar = figure.colorbar(shades, cax=figure.add_axes((0.92, 0.2, 0.016, 0.6)))
    bar.set_label("slope; hatched where it is below 0")
    return figure


def hardet_terms() -> Figure:
    """The Harmonic IoU loss and its slope, and the task-contrastive loss."""
    figure, (value, slope, contrast) = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
    iou = jnp.linspace(0.0, 1.0, 201)
    for gamma, line in zip((0.0, 0.5, 0.8, 1.0, 2.0), LINES, strict=False):

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
    shades = contrast.pcolormesh(p, u, tc, cmap="cividis", rasterized=True)
    contrast.contourf(p, u, u - p, levels=[0.2, 2], colors="none", hatches=["///"])
    words = {
        'score is raised,\nIoU pushed down\n(by "through")': (0.28, 0.68),
        'score is lowered,\nIoU pulled up\n(by "through")': (0.74, 0.13),
    }
    for text, at in words.items():
        contrast.annotate(
            text,
            at,
            ha="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )
    _axes(contrast, "score p", "IoU")
    figure.colorbar(shades, ax=contrast, label="task-contrastive loss (H = 0.5)")
    return figure


def losses_compared() -> Figure:
    """Classification of a positive whose box has IoU 0.7, and a box that slides away."""
    figure, grid = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    prob = jnp.linspace(0.01, 0.99, 197)
    logits = jnp.log(prob / (1 - prob))[:, None]
    labels, target = jnp.zeros(prob.shape, int), jnp.full(prob.shape, 0.7)
    of_scores: dict[str, Callable[[jax.Array], jax.Array]] = {
        "focal": lambda x: losses.sigmoid_focal_loss(x, labels),
        "cross entropy": lambda x: losses.sigmoid_cross_entropy(x, labels),
        "quality focal": lambda x: rivals.quality_focal_loss(x, labels, target),
        "varifocal": lambda x: rivals.varifocal_loss(x, labels, target),
    }
    for (name, loss), line in zip(of_scores.items(), LINES, strict=False):
        _line(grid[0, 0], prob, loss(logits)[:, 0], line, name)
        slope = jax.grad(lambda x, f=loss: f(x).sum())(logits)
        _line(grid[0, 1], prob, slope[:, 0], line, name)
    _axes(grid[0, 0], "score of the true class", "loss", legend="a positive with IoU 0.7")
    _axes(grid[0, 1], "score of the true class", "slope by the logit")
    for place in grid[0]:
        place.axvline(0.7, color="grey", linewidth=0.8)
    grid[0, 0].set_ylim(0, 3)
    grid[0, 1].axhline(0.0, color="grey", linewidth=0.8)

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

    for (name, of_pairs), line in zip(of_boxes.items(), LINES, strict=False):

        def of_shift(s: jax.Array, loss: Callable[..., jax.Array] = of_pairs) -> jax.Array:
            return loss(moved(s), jnp.broadcast_to(box, (len(s), 4)))

        _line(grid[1, 0], shift, of_shift(shift), line, name)
        slope = jax.grad(lambda s, f=of_shift: f(s).sum())(shift)
        _line(grid[1, 1], shift, slope, line, name)
    place = "shift of a box 1.2 times as large, in widths"
    _axes(grid[1, 0], place, "loss", legend="boxes")
    _axes(grid[1, 1], place, "slope by the shift")
    grid[1, 1].axhline(0.0, color="grey", linewidth=0.8)
    return figure


def _line(place: Axes, x: jax.Array, y: jax.Array, line: tuple[str, object], label: str) -> None:
    colour, dashes = line
    place.plot(x, y, color=colour, linestyle=dashes, linewidth=1.8, label=label)


def _axes(place: Axes, x: str, y: str, *, legend: str | None = None) -> None:
    place.set_xlabel(x)
    place.set_ylabel(y)
    place.margins(x=0)
    if legend:
        place.legend(title=legend, fontsize=8, title_fontsize=8)


if __name__ == "__main__":
    main()
