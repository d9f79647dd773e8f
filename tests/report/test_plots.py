"""Charts: what is drawn lies where the numbers say."""

from pathlib import Path

import cv2
import numpy as np

from harmonic_jax.report.plots import plot_loss_curves


def pixels(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return np.asarray(image)


def test_loss_curves(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"step": step, "kind": "train", "loss": 2 / (1 + step), "cls_loss": 0.0, "grad_norm": 9.0}
        for step in range(0, 1000, 10)
    ]
    plot_loss_curves(tmp_path / "a.png", rows)
    plot_loss_curves(tmp_path / "b.png", [*rows, {"step": 500, "kind": "eval", "AP": 0.2}])
    without, with_scores = pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png")
    assert with_scores.shape[1] > without.shape[1] > 400  # a second panel
    rows[3] = rows[3] | {"loss": float("nan")}
    for few in (rows, [], rows[:1], [{"step": 1, "loss": float("inf")}]):
        plot_loss_curves(tmp_path / "c.png", few)
        assert pixels(tmp_path / "c.png").size


def test_a_repeated_step_counts_once(tmp_path: Path) -> None:
    """A run that was killed writes the steps after its last checkpoint again."""
    rows = [{"step": step, "loss": 1.0 + step} for step in range(30)]
    plot_loss_curves(tmp_path / "a.png", rows)
    plot_loss_curves(tmp_path / "b.png", [*rows[:20], {"step": 12, "loss": 99.0}, *rows[10:]])
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
