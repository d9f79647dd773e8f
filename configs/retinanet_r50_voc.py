"""RetinaNet R50-FPN on PASCAL VOC 2007+2012 trainval, evaluated on 2007 test.

Paper row: none (the paper's VOC figures are of the SSD and RefineDet families).
Expected: not measured here; the recipe is the usual one of 12 epochs at 600 x 1000.
Cost: 12,400 steps of 16 images at 600 x 1000; not timed.
Starts from ImageNet weights in torchvision's layout (docs/training.md says how to get them).

    python train.py configs/retinanet_r50_voc.py --model.backbone.weights resnet50.pth
    python train.py configs/retinanet_r50_voc.py --model.backbone.weights resnet50.pth \\
        --data.format voc --data.root VOCdevkit \\
        --data.train-split 2007_trainval+2012_trainval --data.eval-split 2007_test
    # the baseline: --loss.no-hardet
"""

from dataclasses import replace

from harmonic_jax.config import Config, OptimConfig, RetinaNetConfig
from harmonic_jax.recipes import COCO_1X, RESNET50, VOC


def config() -> Config:
    return Config(
        name="retinanet_r50_voc",
        data=replace(VOC, short_sides=(600,), max_side=1000),
        model=RetinaNetConfig(backbone=RESNET50),
        optim=OptimConfig(milestones=(0.75,)),
        train=replace(COCO_1X, steps=12_400, eval_every=3100, checkpoint_every=500),
    )
