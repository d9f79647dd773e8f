"""RefineDet on a narrow VGG-16 for the built-in fashion scenes, from scratch.

Not a row of the paper: a run of minutes on a laptop's processor that goes the whole way.
Expected: AP50 0.51, AP 0.30 on the held-out scenes (measured, one seed).
Cost: about 1.6 seconds a step on 2 CPU cores that did much other work as well.

    python train.py configs/refinedet_vgg_scenes.py
    python train.py configs/refinedet_vgg_scenes.py --loss.no-hardet   # the baseline
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
        name="refinedet_vgg_scenes",
        data=DataConfig(
            name="fashion_scenes",
            short_sides=(96,),
            max_side=96,
            max_objects=8,
            augment=AugmentConfig(flip=0.5),
        ),
        model=RefineDetConfig(
            backbone=VGGConfig(width=16, norm="batch", fc6_dilation=1),
            extra_channels=128,
            norm="batch",
            # The published 10 and 8 are for four times as many channels.
            l2_scales=(5.0, 4.0),
            channels=64,
            # Anchors of 20, 40, 80 and 160 pixels; the last matches nothing, and costs nothing.
            size_factor=2.5,
        ),
        loss=LossConfig(smooth_l1_beta=1.0),
        optim=OptimConfig(
            optimizer="adamw",
            learning_rate=2e-3,
            weight_decay=0.05,
            schedule="cosine",
            warmup_steps=50,
            clip_norm=10.0,
            ema_decay=0.99,
        ),
        train=TrainConfig(steps=1200, batch_size=16, eval_every=600, checkpoint_every=300),
    )
