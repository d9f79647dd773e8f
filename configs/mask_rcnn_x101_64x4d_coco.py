"""Mask R-CNN X101-64x4d-FPN on COCO 2017, the 1x recipe.

Paper row: Mask R-CNN X101-FPN, COCO test-dev, box AP 42.3 (baseline) -> 44.0 (HarDet). Which
ResNeXt-101 is not known; 64x4d is the one of which torchvision has weights.
Expected: the paper's row. Not run by this project yet: that needs a GPU.
Cost: 90,000 steps of 16 images at 800 x 1333; not timed.
Starts from ImageNet weights in torchvision's layout (docs/training.md says how to get them).
Masks come from COCO's own JSON files: TFDS's COCO has none.
SmoothL1's beta of 1/9, in both stages, is torchvision's.

    python train.py configs/mask_rcnn_x101_64x4d_coco.py --model.backbone.weights x101.pth \\
        --data.root DIR
    # the baseline: --loss.no-hardet
"""

from harmonic_jax.config import Config
from harmonic_jax.recipes import RESNEXT101_64X4D, mask_rcnn_1x


def config() -> Config:
    return mask_rcnn_1x("mask_rcnn_x101_64x4d_coco", RESNEXT101_64X4D)
