"""Mask R-CNN R50-FPN on COCO 2017, the 1x recipe of the paper's baseline.

Paper row: Mask R-CNN R50-FPN, COCO test-dev, box AP 38.5 (baseline) -> 40.1 (HarDet).
Expected: the paper's row. Not run by this project yet: that needs a GPU.
Cost: 90,000 steps of 16 images at 800 x 1333; not timed.
Starts from ImageNet weights in torchvision's layout (docs/training.md says how to get them).
Masks come from COCO's own JSON files: TFDS's COCO has none.
SmoothL1's beta of 1/9, in both stages, is torchvision's.

    python train.py configs/mask_rcnn_r50_coco.py --model.backbone.weights resnet50.pth \\
        --data.root DIR
    # the baseline: --loss.no-hardet
"""

from harmonic_jax.config import Config
from harmonic_jax.recipes import RESNET50, mask_rcnn_1x


def config() -> Config:
    return mask_rcnn_1x("mask_rcnn_r50_coco", RESNET50)
