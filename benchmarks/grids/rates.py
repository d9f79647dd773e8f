"""The learning rate of each detector, found for the baseline alone and then fixed for all arms."""

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_recipe import BASELINE, RETINANET, SSD


def grid() -> Grid:
    rates = ("0.001", "0.002", "0.004")
    return Grid(
        title="Learning rate of the baseline",
        cases={"retinanet-scenes": RETINANET, "ssd-scenes": SSD},
        arms={f"rate-{rate}": (*BASELINE, "--optim.learning-rate", rate) for rate in rates},
        baseline="rate-0.002",
        seeds=(0,),
    )
