"""PASCAL VOC 2007: what HarDet does to detectors of real photos, from ImageNet weights.

Trained on `trainval` for 6 epochs, 256 pixels wide, and measured on `test` once a run. The rates
and the weights of the classes are those of `grids/voc_tuning.py`.
"""

from benchmarks.ablation_grid import Grid
from benchmarks.ablation_recipe import BASELINE, VOC, hardet, rival

RETINANET = "retinanet-voc"
RATE = ("--optim.learning-rate", "0.001")
SSD_SIZES = ("19", "38", "77", "120", "164", "208")  # the config's, of 320 pixels


def grid() -> Grid:
    rivals = {
        "harmonic": hardet(alpha=0.0, margin=1.0),
        "harmonic+iou": hardet(gamma=0.0, margin=1.0),
        "giou": rival("giou"),
        "gfl": rival("gfl"),
        "ia_bce": rival("ia_bce"),
        "mal": rival("mal"),
        "position": rival("position"),
    }
    weighted = {
        "hardet-balanced": hardet(cls_weight=3.0),
        "hardet-stop": hardet(gradient="stop"),
    }
    return Grid(
        title="PASCAL VOC 2007",
        cases={
            RETINANET: ("configs/retinanet_lite0_voc.py", *VOC, *RATE),
            "ssd-voc": (
                *("configs/ssd_lite0_voc.py", *VOC, *RATE),
                *("--model.default-boxes.sizes", *SSD_SIZES),
            ),
            "refinedet-voc": ("configs/refinedet_lite0_voc.py", *VOC, *RATE),
            "faster-rcnn-voc": ("configs/faster_rcnn_lite0_voc.py", *VOC, *RATE),
        },
        arms={"baseline": BASELINE, "hardet": hardet(), **weighted, **rivals},
        only=dict.fromkeys((*weighted, *rivals), (RETINANET,)),
        num_seeds={
            **dict.fromkeys(("ssd-voc", "refinedet-voc", "faster-rcnn-voc"), 2),
            **dict.fromkeys(rivals, 1),
        },
        baseline="baseline",
        seeds=(0, 1, 2),
        common=("--train.steps", "1880"),
    )
