"""Faster R-CNN R101-FPN on COCO 2017, the 1x recipe.

Paper row: none that is known; the R50 row is 37.5 -> 39.3 on test-dev.
Expected: about 2 AP more than with R50. Not run by this project yet: that needs a GPU.
Cost: 90,000 steps of 16 images at 800 x 1333; not timed.
Starts from ImageNet weights in torchvision's layout (docs/training.md says how to get them).
SmoothL1's beta of 1/9, in both stages, is torchvision's.

    python train.py configs/faster_rcnn_r101_coco.py --model.backbone.weights resnet101.pth
    python train.py configs/faster_rcnn_r101_coco.py --model.backbone.weights resnet101.pth \\
        --data.format coco --data.root DIR --data.train-split train2017 --data.eval-split val2017
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
        name="faster_rcnn_r101_coco",
        data=DataConfig(
            name="coco/2017",
            train_split="train",
            eval_split="validation",
            short_sides=(800,),
            max_side=1333,
            augment=AugmentConfig(flip=0.5),
            num_threads=16,
        ),
        # The stem and the first stage stay as ImageNet left them, as in the reference recipe.
        model=FasterRCNNConfig(backbone=ResNetConfig(depth=101, norm="frozen", frozen_stages=2)),
        loss=LossConfig(smooth_l1_beta=1 / 9),
        optim=OptimConfig(
            optimizer="sgd",
            learning_rate=0.02,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="step",
            milestones=(2 / 3, 8 / 9),
            warmup_steps=500,
            warmup_factor=0.001,
        ),
        train=TrainConfig(
            steps=90_000,
            batch_size=16,
            precision="bfloat16",
            eval_every=10_000,
            checkpoint_every=1_000,
        ),
    )
