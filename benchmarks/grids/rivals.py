"""Other losses for the same problem, under one recipe."""

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_recipe import BASELINE, CASES, hardet, rival

ARMS = ("giou", "gfl", "vfl", "iou_balanced", "pisa", "correlation")


def grid() -> Grid:
    arms = {"baseline": BASELINE, "hardet": hardet()}
    arms |= {name: rival(name) for name in ARMS}
    return Grid(
        title="Rivals",
        cases={"retinanet-scenes": CASES["retinanet-scenes"]},
        arms=arms,
        baseline="baseline",
        references=("hardet",),
        seeds=(0, 1, 2),
    )
