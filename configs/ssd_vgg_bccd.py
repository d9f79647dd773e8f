"""SSD on a narrow VGG-16 for the BCCD photos of blood cells (VOC XML), from scratch.

Not a row of the paper: a small real data set (292 photos to train on, 72 to test on).
Expected: AP50 0.90, AP 0.53 on the test split (measured, one seed).
Cost: 19 minutes on 2 CPU cores.

    python train.py configs/ssd_vgg_bccd.py --data.root DIR
    python train.py configs/ssd_vgg_bccd.py --data.root DIR --loss.no-hardet   # baseline
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
    VGGConfig,
)


def config() -> Config:
    return Config(
        name="ssd_vgg_bccd",
        data=DataConfig(
            format="voc",
            root="data/bccd",
            train_split="trainval",
            eval_split="test",
            # The photos are 640 x 480: half of that, and nothing is padded.
            short_sides=(240,),
            max_side=320,
            stride=16,
            max_objects=64,
            # A microscope has no up: flips both ways are free data. The colours of the stain
            # tell the classes apart: no photometric distortion, which permutes them.
            augment=AugmentConfig(flip=0.5, vertical_flip=0.5),
        ),
        model=SSDConfig(
            backbone=VGGConfig(width=16, norm="batch", atrous=True, fc6_dilation=4),
            extra_channels=64,
            norm="batch",
            # Maps of 30 x 40, 15 x 20, 8 x 10 and 4 x 5 cells.
            extra_layers=("3x3/2", "3x3/2"),
            # The published 20 is for four times as many channels.
            l2_scale=10.0,
            # Platelets have 20 pixels, red cells 50, white ones up to 120.
            default_boxes=DefaultBoxConfig(
                sizes=(20.0, 40.0, 60.0, 90.0, 130.0),
                max_ratios=(2, 2, 2, 2),
                steps=(8.0, 16.0, 32.0, 64.0),
            ),
        ),
        # Factors as weights: with them SSD trained better than through them (docs/results.md).
        loss=LossConfig(smooth_l1_beta=1.0, factor_gradient="stop"),
        optim=OptimConfig(
            optimizer="adamw",
            learning_rate=1e-3,
            weight_decay=0.05,
            schedule="cosine",
            warmup_steps=50,
            clip_norm=10.0,
            ema_decay=0.99,
        ),
        train=TrainConfig(steps=1000, batch_size=8, eval_every=250, checkpoint_every=125),
    )
