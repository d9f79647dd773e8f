"""RetinaNet on a narrow ResNet-18 for the BCCD photos of blood cells (VOC XML), from scratch.

Not a row of the paper: a small real data set (292 photos to train on, 72 to test on).
Expected: AP50 0.88, AP 0.55 on the test split (measured, one seed).
Cost: 48 minutes on 2 CPU cores that did other work as well.

    python train.py configs/retinanet_r18_bccd.py --data.root DIR
    python train.py configs/retinanet_r18_bccd.py --data.root DIR --loss.no-hardet   # baseline
"""

from harmonic_jax.config import (
    AnchorConfig,
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
        name="retinanet_r18_bccd",
        data=DataConfig(
            format="voc",
            root="data/bccd",
            train_split="trainval",
            eval_split="test",
            short_sides=(240,),
            max_side=320,
            max_objects=64,
            # A microscope has no up: flips both ways are free data. The colours of the stain
            # tell the classes apart: no photometric distortion, which permutes them.
            augment=AugmentConfig(flip=0.5, vertical_flip=0.5),
        ),
        model=RetinaNetConfig(
            backbone=ResNetConfig(depth=18, width=32, norm="batch"),
            levels=(3, 5),
            channels=64,
            head_convs=2,
            head_norm="group",
            anchors=AnchorConfig(size_factor=3.0, scales=(1.0, 2**0.5), ratios=(0.5, 1.0, 2.0)),
        ),
        optim=OptimConfig(
            optimizer="adamw",
            learning_rate=1e-3,
            weight_decay=0.05,
            schedule="cosine",
            warmup_steps=200,
            clip_norm=10.0,
            ema_decay=0.998,
        ),
        train=TrainConfig(steps=2000, batch_size=8, eval_every=500, checkpoint_every=200),
    )
