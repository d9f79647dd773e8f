"""Faster R-CNN R50-FPN on COCO 2017, the 1x recipe of the paper's baseline.

Paper row: Faster R-CNN R50-FPN, COCO test-dev, AP 37.5 (baseline) -> 39.3 (HarDet).
Expected: the paper's row. Not run by this project yet: that needs a GPU.
Cost: 90,000 steps of 16 images at 800 x 1333; not timed.
Starts from ImageNet weights in torchvision's layout (docs/training.md says how to get them).
SmoothL1's beta of 1/9, in both stages, is torchvision's.

    python train.py configs/faster_rcnn_r50_coco.py --model.backbone.weights resnet50.pth
    python train.py configs/faster_rcnn_r50_coco.py --model.backbone.weights resnet50.pth \\
        --data.format coco --data.root DIR --data.train-split train2017 --data.eval-split val2017
    # the baseline: --loss.no-hardet
"""

from harmonic_jax.config import Config
from harmonic_jax.recipes import RESNET50, faster_rcnn_1x


def config() -> Config:
    return faster_rcnn_1x("faster_rcnn_r50_coco", RESNET50)
