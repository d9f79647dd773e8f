"""SSD300 VGG-16 on PASCAL VOC 2007+2012 trainval, evaluated on 2007 test.

Paper row: none (of SSD the paper reports VOC figures, which were not found).
Expected: 77.2 mAP without HarDet (the SSD paper). Not run here yet: it needs a GPU.
Cost: 120,000 steps of 32 images at 300 x 300, about 0.2 TFLOP a training image.
Starts from ImageNet weights of VGG-16 (torchvision's IMAGENET1K_FEATURES, or the reduced network of
the Caffe original); of torchvision's classifier fc6 and fc7 are used too, but its images are
normalised otherwise: --model.backbone.normalization torchvision.

    python train.py configs/ssd300_voc.py --model.backbone.weights vgg16_features.pth
    python train.py configs/ssd300_voc.py --model.backbone.weights vgg16_features.pth \\
        --data.format voc --data.root VOCdevkit \\
        --data.train-split 2007_trainval+2012_trainval --data.eval-split 2007_test
    # the baseline: --loss.no-hardet
"""

from dataclasses import replace

from harmonic_jax.config import Config, SSDConfig
from harmonic_jax.recipes import SSD_LOSS, SSD_SGD, SSD_VOC, VOC, for_ssd


def config() -> Config:
    return Config(
        name="ssd300_voc",
        data=replace(for_ssd(VOC, 300), stride=4),  # 300 is no multiple of 32
        model=SSDConfig(),
        loss=SSD_LOSS,
        optim=SSD_SGD,
        train=SSD_VOC,
    )
