"""What each part of the loss does (the paper's ablation): small detectors, heavy occlusion.

The parts are switched by their constants: alpha 0 leaves the Harmonic IoU loss out, a margin of 1
the task-contrastive one, and gamma 0 makes a plain IoU loss, 1 - IoU, of the former.
"""

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_recipe import BASELINE, CASES, hardet


def grid() -> Grid:
    return Grid(
        title="Parts of the loss",
        cases=CASES,
        arms={
            "baseline": BASELINE,
            "harmonic": hardet(alpha=0.0, margin=1.0),
            "harmonic+tc": hardet(alpha=0.0),
            "harmonic+iou": hardet(gamma=0.0, margin=1.0),
            "harmonic+hiou": hardet(margin=1.0),
            "hardet": hardet(),
        },
        baseline="baseline",
        seeds=(0, 1, 2, 3, 4),
    )
