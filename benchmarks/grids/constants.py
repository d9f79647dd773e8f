"""The constants of the paper, alpha 1.5, gamma .8, margin .2, and their neighbours."""

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_recipe import BASELINE, CASES, hardet


def grid() -> Grid:
    arms = {"baseline": BASELINE, "hardet": hardet()}
    arms |= {f"alpha-{value}": hardet(alpha=value) for value in (0.75, 3.0)}
    arms |= {f"gamma-{value}": hardet(gamma=value) for value in (0.5, 1.0)}
    arms |= {f"margin-{value}": hardet(margin=value) for value in (0.1, 0.3)}
    return Grid(
        title="Constants",
        cases={"retinanet-scenes": CASES["retinanet-scenes"]},
        arms=arms,
        baseline="hardet",
        seeds=(0, 1, 2),
    )
