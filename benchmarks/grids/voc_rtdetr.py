"""RT-DETRv2 on PASCAL VOC 2007: in about the minutes of RetinaNet in `grids/voc.py`.

Trained on `trainval` in squares of as many pixels, measured on `test`. The baseline is the
varifocal loss, as it was published; the learning rate is the config's and was not tuned.
"""

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_recipe import BASELINE, VOC, hardet


def grid() -> Grid:
    return Grid(
        title="RT-DETR on PASCAL VOC 2007",
        cases={
            "rtdetr-voc": (
                *("configs/rtdetr_lite0_voc.py", *VOC, "--optim.learning-rate", "0.0005"),
                *("--data.short-sides", "224", "--data.max-side", "224"),
            ),
        },
        arms={"baseline": BASELINE, "hardet": hardet()},
        baseline="baseline",
        seeds=(0, 1),
        common=("--train.steps", "750"),
    )
