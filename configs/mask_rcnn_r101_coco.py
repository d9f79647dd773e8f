"""Mask R-CNN R101-FPN on COCO 2017, the 1x recipe.

Paper row: none that is known; the R50 row is 38.5 -> 40.1 on test-dev.
Expected: about 2 AP more than with R50. Not run by this project yet: that needs a GPU.
Cost: 90,000 steps of 16 images at 800 x 1333; not timed.
Starts from ImageNet weights in torchvision's layout (docs/training.md says how to get them).
Masks come from COCO's own JSON files: TFDS's COCO has none.
SmoothL1's beta of 1/9, in both stages, is torchvision's.

    python train.py configs/mask_rcnn_r101_coco.py --model.backbone.weights resnet101.pth \\
        --data.root DIR
    # the baseline: --loss.no-hardet
"""

from harmonic_jax.config import Config
from harmonic_jax.recipes import RESNET101, mask_rcnn_1x


def config() -> Config:
    return mask_rcnn_1x("mask_rcnn_r101_coco", RESNET101)
