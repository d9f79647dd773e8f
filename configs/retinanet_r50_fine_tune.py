"""RetinaNet R50-FPN from torchvision's COCO weights, fine-tuned on a folder in COCO layout.

Not a row of the paper: what a user with a small data set of photos does (docs/weights.md).
Expected: nothing is promised; not run by this project yet, which has no published weights at hand.
Cost: 3,000 steps of 8 images at 800 x 1333, about 1.5 TFLOP a training image.

    harmonic-jax import-weights retinanet_resnet50_fpn_coco.safetensors \\
        --to retinanet_resnet50_fpn --out runs/coco
    python train.py configs/retinanet_r50_fine_tune.py --init runs/coco --data.root DIR
"""

from dataclasses import replace

from harmonic_jax.config import Config, OptimConfig, TrainConfig
from harmonic_jax.pretrained.models import DETECTORS

TORCHVISION = DETECTORS["retinanet_resnet50_fpn"]


def config() -> Config:
    return Config(
        name="retinanet_r50_fine_tune",
        data=replace(TORCHVISION.data, train_split="train", eval_split="val"),
        # The stem and the first stage stay as they are, and all statistics.
        model=TORCHVISION.model,
        optim=OptimConfig(
            learning_rate=0.0025,
            schedule="cosine",
            warmup_steps=200,
            clip_norm=10.0,
            # What knows COCO moves slowly; the layer with the new classes learns at full rate.
            rate_factors=(("backbone", 0.1), ("fpn", 0.1)),
        ),
        train=TrainConfig(steps=3000, batch_size=8, eval_every=500, checkpoint_every=500),
    )
