"""SSD512 VGG-16 on COCO 2017, with the smaller default boxes of the Caffe original.

Paper row: none.
Expected: 28.8 AP on test-dev without HarDet (the SSD paper). Not run here yet: it needs a GPU.
Cost: 400,000 steps of 32 images at 512 x 512, about 0.6 TFLOP a training image.
Starts from ImageNet weights of VGG-16 (torchvision's IMAGENET1K_FEATURES, or the reduced network of
the Caffe original); of torchvision's classifier fc6 and fc7 are used too, but its images are
normalised otherwise: --model.backbone.normalization torchvision.

    python train.py configs/ssd512_coco.py --model.backbone.weights vgg16_features.pth
    python train.py configs/ssd512_coco.py --model.backbone.weights vgg16_features.pth \\
        --data.format coco --data.root DIR --data.train-split train2017 --data.eval-split val2017
    # the baseline: --loss.no-hardet
"""

from harmonic_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    DefaultBoxConfig,
    LossConfig,
    OptimConfig,
    SSDConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="ssd512_coco",
        data=DataConfig(
            name="coco/2017",
            train_split="train",
            eval_split="validation",
            resize="warp",
            short_sides=(512,),
            max_side=512,
            stride=32,
            augment=AugmentConfig(photometric=True, expand=4.0, crop=True, flip=0.5),
            num_threads=16,
        ),
        model=SSDConfig(
            extra_layers=("3x3/2", "3x3/2", "3x3/2", "3x3/2", "4x4"),
            default_boxes=DefaultBoxConfig(
                sizes=(20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
                max_ratios=(2, 3, 3, 3, 3, 2, 2),
                steps=(8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
            ),
        ),
        # Factors as weights: with them SSD trained better than through them (docs/results.md).
        loss=LossConfig(smooth_l1_beta=1.0, factor_gradient="stop"),
        optim=OptimConfig(
            optimizer="sgd",
            learning_rate=1e-3,
            momentum=0.9,
            weight_decay=5e-4,
            schedule="step",
            milestones=(0.7, 0.9),
            warmup_steps=500,
        ),
        train=TrainConfig(
            steps=400_000,
            batch_size=32,
            precision="bfloat16",
            eval_every=20_000,
            checkpoint_every=1_000,
        ),
    )
