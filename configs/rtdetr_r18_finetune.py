"""RT-DETRv2 R18 fine-tuned from its published COCO weights on a folder in COCO JSON layout.

Paper row: none (RT-DETR is of 2023).
Expected: depends on the data; of COCO itself the weights have 48.1 AP (the RT-DETRv2 paper).
Cost: 2,000 steps of 8 images at 640 x 640; not timed yet.

    python train.py configs/rtdetr_r18_finetune.py --data.root DIR     # train2017/, val2017/, ..
    python train.py configs/rtdetr_r18_finetune.py --data.root DIR --init FOLDER   # without network

FOLDER holds config.json and model.safetensors of the Hub's PekingU/rtdetr_v2_r18vd.
"""

import dataclasses

from harmonic_jax.config import Config, ResNetConfig, RTDETRConfig, TrainConfig
from harmonic_jax.recipes import COCO_FOLDER, DETR_ADAMW, DETR_LOSS, for_ssd


def config() -> Config:
    return Config(
        name="rtdetr_r18_finetune",
        data=for_ssd(COCO_FOLDER, 640),
        model=RTDETRConfig(backbone=ResNetConfig(depth=18, variant="d", normalization="unit")),
        loss=DETR_LOSS,
        optim=dataclasses.replace(DETR_ADAMW, schedule="cosine", warmup_steps=200, ema_decay=0.998),
        train=TrainConfig(steps=2000, batch_size=8, eval_every=500, checkpoint_every=250),
        init="hf:PekingU/rtdetr_v2_r18vd",
    )
