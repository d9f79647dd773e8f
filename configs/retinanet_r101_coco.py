"""RetinaNet R101-FPN on COCO 2017, the 1x recipe.

Paper row: none that is known; the R50 row is 36.1 -> 37.6 on test-dev.
Expected: about 2 AP more than with R50. Not run by this project yet: that needs a GPU.
Cost: 90,000 steps of 16 images at 800 x 1333; not timed.
Starts from ImageNet weights in torchvision's layout (docs/training.md says how to get them).

    python train.py configs/retinanet_r101_coco.py --model.backbone.weights resnet101.pth
    python train.py configs/retinanet_r101_coco.py --model.backbone.weights resnet101.pth \\
        --data.format coco --data.root DIR --data.train-split train2017 --data.eval-split val2017
    # the baseline: --loss.no-hardet
"""

from harmonic_jax.config import Config
from harmonic_jax.recipes import RESNET101, retinanet_1x


def config() -> Config:
    return retinanet_1x("retinanet_r101_coco", RESNET101)
