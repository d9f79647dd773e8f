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

from harmonic_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    OptimConfig,
    ResNetConfig,
    RetinaNetConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="retinanet_r50_voc",
        data=DataConfig(
            name="voc/2007+2012",
            train_split="trainval",
            eval_split="test",
            short_sides=(600,),
            max_side=1000,
            augment=AugmentConfig(flip=0.5),
            num_threads=16,
        ),
        model=RetinaNetConfig(
            backbone=ResNetConfig(depth=50, norm="frozen", frozen_stages=2),
        ),
        optim=OptimConfig(
            optimizer="sgd",
            learning_rate=0.01,
            schedule="step",
            milestones=(0.75,),
            warmup_steps=500,
        ),
        train=TrainConfig(
            steps=12_400,
            batch_size=16,
            precision="bfloat16",
            eval_every=3_100,
            checkpoint_every=500,
        ),
    )
