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

from harmonic_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    FasterRCNNConfig,
    LossConfig,
    OptimConfig,
    ResNetConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="faster_rcnn_r50_voc",
        data=DataConfig(
            name="voc/2007+2012",
            train_split="trainval",
            eval_split="test",
            short_sides=tuple(range(480, 801, 32)),
            max_side=1333,
            augment=AugmentConfig(flip=0.5),
            num_threads=16,
        ),
        model=FasterRCNNConfig(
            backbone=ResNetConfig(depth=50, norm="frozen", frozen_stages=2),
        ),
        loss=LossConfig(smooth_l1_beta=1 / 9),
        optim=OptimConfig(
            optimizer="sgd",
            learning_rate=0.02,
            schedule="step",
            milestones=(2 / 3, 8 / 9),
            warmup_steps=100,
        ),
        train=TrainConfig(
            steps=18_000,
            batch_size=16,
            precision="bfloat16",
            eval_every=4_500,
            checkpoint_every=500,
        ),
    )
