"""SSD300 VGG-16 on COCO 2017, with the smaller default boxes of the Caffe original.

Paper row: none.
Expected: 25.1 AP on test-dev without HarDet (the SSD paper). Not run here yet: it needs a GPU.
Cost: 400,000 steps of 32 images at 300 x 300, about 0.2 TFLOP a training image.
Starts from ImageNet weights of VGG-16 (torchvision's IMAGENET1K_FEATURES, or the reduced network of
the Caffe original); of torchvision's classifier fc6 and fc7 are used too, but its images are
normalised otherwise: --model.backbone.normalization torchvision.

    python train.py configs/ssd300_coco.py --model.backbone.weights vgg16_features.pth
    python train.py configs/ssd300_coco.py --model.backbone.weights vgg16_features.pth \\
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
        name="ssd300_coco",
        data=DataConfig(
            name="coco/2017",
            train_split="train",
            eval_split="validation",
            resize="warp",
            short_sides=(300,),
            max_side=300,
            stride=4,  # 300 is no multiple of 32
            augment=AugmentConfig(photometric=True, expand=4.0, crop=True, flip=0.5),
            num_threads=16,
        ),
        model=SSDConfig(
            default_boxes=DefaultBoxConfig(
                sizes=(21.0, 45.0, 99.0, 153.0, 207.0, 261.0, 315.0),
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
