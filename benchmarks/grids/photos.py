"""Real photos, blood cells: baseline and full HarDet, four detectors.

The folder of the photos is given as the environment variable BCCD. The learning rates are those of
the configs; the test photos are evaluated once a run, at its end.
"""

import os

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_recipe import BASELINE, hardet


def grid() -> Grid:
    data = ("--data.root", os.environ.get("BCCD", "bccd"))
    detectors = {
        "retinanet": "retinanet_r18_bccd",
        "ssd": "ssd_vgg_bccd",
        "refinedet": "refinedet_vgg_bccd",
        "faster-rcnn": "faster_rcnn_r18_bccd",
    }
    return Grid(
        title="Photos of blood cells",
        cases={f"{name}-bccd": (f"configs/{file}.py", *data) for name, file in detectors.items()},
        arms={"baseline": BASELINE, "hardet": hardet()},
        baseline="baseline",
        seeds=(0, 1, 2),
        common=(
            *("--train.steps", "600", "--train.batch-size", "4", "--train.eval-every", "0"),
            *("--optim.ema-decay", "0.99"),
        ),
    )
