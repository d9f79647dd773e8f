"""The learning rate of each detector, found for the baseline alone and then fixed for all arms.

Three quarters of the other grids' steps.
"""

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_recipe import BASELINE, RETINANET, SSD


def grid() -> Grid:
    rates = ("0.001", "0.002", "0.004", "0.008")
    return Grid(
        title="Learning rate of the baseline",
        cases={
            "retinanet-scenes": (*RETINANET, "--train.steps", "1800"),
            "ssd-scenes": (*SSD, "--train.steps", "1200"),
        },
        arms={f"rate-{rate}": (*BASELINE, "--optim.learning-rate", rate) for rate in rates},
        only={"rate-0.008": ("retinanet-scenes",)},  # SSD's 0.004 was no better than 0.002
        baseline="rate-0.002",
        seeds=(0,),
    )
