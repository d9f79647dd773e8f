"""Faster R-CNN R50-FPN on PASCAL VOC 2007+2012 trainval, evaluated on 2007 test.

Paper row: none (the paper's VOC figures are of the SSD and RefineDet families).
Expected: not measured here; the schedule is detectron2's (18,000 steps, sides 480 to 800).
Cost: 18,000 steps of 16 images at up to 800 x 1333; not timed.
Starts from ImageNet weights in torchvision's layout (docs/training.md says how to get them).

    python train.py configs/faster_rcnn_r50_voc.py --model.backbone.weights resnet50.pth
    python train.py configs/faster_rcnn_r50_voc.py --model.backbone.weights resnet50.pth \\
        --data.format voc --data.root VOCdevkit \\
        --data.train-split 2007_trainval+2012_trainval --data.eval-split 2007_test
    # the baseline: --loss.no-hardet
"""

from dataclasses import replace

from harmonic_jax.config import Config, OptimConfig
from harmonic_jax.recipes import COCO_1X, RESNET50, VOC, faster_rcnn_1x


def config() -> Config:
    return replace(
        faster_rcnn_1x("faster_rcnn_r50_voc", RESNET50),
        data=replace(VOC, short_sides=tuple(range(480, 801, 32))),
        optim=OptimConfig(learning_rate=0.02, warmup_steps=100),
        train=replace(COCO_1X, steps=18_000, eval_every=4500, checkpoint_every=500),
    )
