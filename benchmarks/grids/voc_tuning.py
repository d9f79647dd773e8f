"""PASCAL VOC 2007, trained on `train` and measured on `val`: rates and weights, before any test.

The rate is chosen for the baseline alone; then `loss.cls_weight` of every loss by the same rule,
the best AP of one seed.
"""

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_recipe import BASELINE, VOC, hardet, rival


def grid() -> Grid:
    def weighted(weight: str) -> tuple[str, ...]:
        return ("--loss.cls-weight", weight)

    return Grid(
        title="PASCAL VOC 2007 val: rates of the baseline, weights of the classes",
        cases={"retinanet-val": ("configs/retinanet_lite0_voc.py", *VOC)},
        arms={
            "baseline": BASELINE,
            "hardet": hardet(),
            "hardet-cls3": hardet(cls_weight=3.0),
            "gfl": rival("gfl"),
            "baseline-rate2e-3": (*BASELINE, "--optim.learning-rate", "0.002"),
            "baseline-rate5e-4": (*BASELINE, "--optim.learning-rate", "0.0005"),
            "baseline-cls2": (*BASELINE, *weighted("2")),
            "hardet-stop-cls3": hardet(gradient="stop", cls_weight=3.0),
            "hardet-cls6": hardet(cls_weight=6.0),
            "baseline-cls0.5": (*BASELINE, *weighted("0.5")),
        },
        baseline="baseline",
        seeds=(0,),
        common=(
            *("--data.train-split", "train", "--data.eval-split", "val"),
            *("--train.steps", "625", "--optim.learning-rate", "0.001"),
        ),
    )
