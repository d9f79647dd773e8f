"""SSD on a narrow VGG-16 for the built-in fashion scenes, from scratch.

Not a row of the paper: a run of minutes on a laptop's processor that goes the whole way.
Expected: AP50 0.64, AP 0.40 on the held-out scenes (measured, one seed).
Cost: 7.5 minutes on 2 CPU cores.

    python train.py configs/ssd_vgg_scenes.py
    python train.py configs/ssd_vgg_scenes.py --loss.no-hardet   # the baseline
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
        name="ssd_vgg_scenes",
        data=DataConfig(
            name="fashion_scenes",
            short_sides=(96,),
            max_side=96,
            max_objects=8,
            augment=AugmentConfig(flip=0.5),
        ),
        model=SSDConfig(
            backbone=VGGConfig(width=16, norm="batch", atrous=True, fc6_dilation=2),
            extra_channels=64,
            norm="batch",
            # Maps of 12, 6, 3 and 1 cells a side.
            extra_layers=("3x3/2", "3x3"),
            # The published 20 is for four times as many channels.
            l2_scale=10.0,
            # Half of the items have 24 to 35 pixels. With these sizes an item has 7 boxes that
            # match, with squares of 18 to 44 pixels on the first two levels it had 3.
            default_boxes=DefaultBoxConfig(
                sizes=(24.0, 36.0, 52.0, 70.0, 90.0),
                max_ratios=(3, 3, 2, 2),
                steps=(8.0, 16.0, 32.0, 0.0),
            ),
        ),
        # Factors as weights: with them SSD trained better than through them (docs/results.md).
        loss=LossConfig(smooth_l1_beta=1.0, factor_gradient="stop"),
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
