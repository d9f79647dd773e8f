"""Where the gradient flows in full HarDet, and what the factors are made of.

`hardet` is through-loss: the gradient flows through both factors, which are made of the loss.
"""

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_recipe import BASELINE, CASES, hardet


def grid() -> Grid:
    others = [(g, s) for s in ("loss", "ce") for g in ("through", "stop", "cls_only")][1:]
    arms = {f"{g}-{s}": hardet(gradient=g, source=s) for g, s in others}
    return Grid(
        title="Gradients of the factors",
        cases=CASES,
        arms={"baseline": BASELINE, "hardet": hardet()} | arms,
        # Of a softmax head the loss is the cross entropy: both sources are one.
        only={arm: ("retinanet-scenes",) for arm in arms if arm.endswith("-ce")},
        baseline="hardet",  # the printed formula; what the others have to beat
        references=("baseline",),
        seeds=(0, 1, 2, 3, 4),  # three left it open which is best
    )
