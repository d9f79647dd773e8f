"""Fine-tuning on photos of blood cells: the same detector and steps, three starts.

The folder of the photos is given as the environment variable BCCD. 340 steps of 16 images take ten
minutes on two cores. From random weights nothing is held fixed, and the norms are of batches.
"""

import os

from benchmarks.ablation_grid import Grid

DATA = (
    *("--data.root", os.environ.get("BCCD", "bccd"), "--data.max-objects", "64"),
    *("--data.augment.no-photometric", "--data.augment.expand", "1"),
    *("--data.augment.no-crop", "--data.augment.vertical-flip", "0.5"),
)


def grid() -> Grid:
    return Grid(
        title="Photos of blood cells, from three starts",
        cases={"retinanet-bccd": ("configs/retinanet_lite0_voc.py", *DATA)},
        arms={
            "random": (
                *("--model.backbone.weights", "None", "--model.backbone.norm", "batch"),
                *("--model.backbone.frozen-stages", "0"),
            ),
            "imagenet": ("--model.backbone.weights", "imagenet"),
            "voc": ("--model.backbone.weights", "None", "--init", "retinanet_lite0_voc"),
        },
        baseline="imagenet",
        seeds=(0, 1, 2),
        common=(
            *("--train.steps", "340", "--train.eval-every", "0"),
            *("--optim.ema-decay", "0.99", "--optim.warmup-steps", "50"),
        ),
    )
