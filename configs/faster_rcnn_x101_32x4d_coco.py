"""Faster R-CNN X101-32x4d-FPN on COCO 2017, the 1x recipe.

Paper row: none that is known; the R50 row is 37.5 -> 39.3 on test-dev.
Expected: about 4 AP more than with R50. Not run by this project yet: that needs a GPU.
Cost: 90,000 steps of 16 images at 800 x 1333; not timed.
Starts from ImageNet weights in torchvision's layout. torchvision itself publishes none of this
ResNeXt (it has 32x8d and 64x4d): any state dict with its names will do.
SmoothL1's beta of 1/9, in both stages, is torchvision's.

    python train.py configs/faster_rcnn_x101_32x4d_coco.py --model.backbone.weights x101.pth
    python train.py configs/faster_rcnn_x101_32x4d_coco.py --model.backbone.weights x101.pth \\
        --data.format coco --data.root DIR --data.train-split train2017 --data.eval-split val2017
    # the baseline: --loss.no-hardet
"""

from harmonic_jax.config import Config
from harmonic_jax.recipes import RESNEXT101_32X4D, faster_rcnn_1x


def config() -> Config:
    return faster_rcnn_1x("faster_rcnn_x101_32x4d_coco", RESNEXT101_32X4D)
