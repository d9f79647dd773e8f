"""RetinaNet R50-FPN on COCO 2017, the 1x recipe of the paper's baseline.

Paper row: RetinaNet R50-FPN, COCO test-dev, AP 36.1 (baseline) -> 37.6 (HarDet).
Expected: the paper's row. Not run by this project yet: that needs a GPU.
Cost: 90,000 steps of 16 images at 800 x 1333, about 1.5 TFLOP a training image.
Starts from ImageNet weights in torchvision's layout (docs/training.md says how to get them).

    python train.py configs/retinanet_r50_coco.py --model.backbone.weights resnet50.pth
    python train.py configs/retinanet_r50_coco.py --model.backbone.weights resnet50.pth \\
        --data.format coco --data.root DIR --data.train-split train2017 --data.eval-split val2017
    # the baseline: --loss.no-hardet
"""

from harmonic_jax.config import Config
from harmonic_jax.recipes import RESNET50, retinanet_1x


def config() -> Config:
    return retinanet_1x("retinanet_r50_coco", RESNET50)
