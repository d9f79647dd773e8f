"""RefineDet512 VGG-16 on COCO 2017.

Paper row: RefineDet512, COCO test-dev, AP 36.4 (baseline) -> 38.8 (HarDet). 36.4 is what the
RefineDet paper reports on ResNet-101; for VGG-16 it reports 33.0.
Expected: 33.0 AP on test-dev without HarDet. Not run here yet: it needs a GPU.
Cost: 400,000 steps of 32 images at 512 x 512, about 0.6 TFLOP a training image.
Starts from ImageNet weights of VGG-16 (torchvision's IMAGENET1K_FEATURES, or the reduced network of
the Caffe original); of torchvision's classifier fc6 and fc7 are used too, but its images are
normalised otherwise: --model.backbone.normalization torchvision.

    python train.py configs/refinedet512_coco.py --model.backbone.weights vgg16_features.pth
    python train.py configs/refinedet512_coco.py --model.backbone.weights vgg16_features.pth \\
        --data.format coco --data.root DIR --data.train-split train2017 --data.eval-split val2017
    # the baseline: --loss.no-hardet
"""

from dataclasses import replace

from harmonic_jax.config import Config, RefineDetConfig
from harmonic_jax.recipes import COCO, REFINEDET_LOSS, SSD_COCO, SSD_SGD, for_ssd


def config() -> Config:
    return Config(
        name="refinedet512_coco",
        data=for_ssd(COCO, 512),
        model=RefineDetConfig(),
        loss=REFINEDET_LOSS,
        optim=replace(SSD_SGD, milestones=(0.7, 0.9)),
        train=SSD_COCO,
    )
