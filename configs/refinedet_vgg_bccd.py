"""RefineDet on a narrow VGG-16 for the BCCD photos of blood cells (VOC XML), from scratch.

Not a row of the paper: a small real data set (292 photos to train on, 72 to test on).
Expected: AP50 0.81, AP 0.40 on the test split after 120 steps (measured, one seed).
The whole run was not measured.
Cost: not timed alone.

    python train.py configs/refinedet_vgg_bccd.py --data.root DIR
    python train.py configs/refinedet_vgg_bccd.py --data.root DIR --loss.no-hardet   # baseline
"""

from harmonic_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    OptimConfig,
    RefineDetConfig,
    TrainConfig,
    VGGConfig,
)


def config() -> Config:
    return Config(
        name="refinedet_vgg_bccd",
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
        model=RefineDetConfig(
            backbone=VGGConfig(width=16, norm="batch", fc6_dilation=2),
            extra_channels=128,
            norm="batch",
            # The published 10 and 8 are for four times as many channels.
            l2_scales=(5.0, 4.0),
            channels=64,
            # Anchors of 20, 40, 80 and 160 pixels: platelets have 20, red cells 50, white ones
            # up to 120.
            size_factor=2.5,
        ),
        loss=LossConfig(smooth_l1_beta=1.0),
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
