"""RetinaNet R50-FPN on COCO 2017 with 4,096 images a step, for a pod of 256 chips or more.

Not a row of the paper: a large-batch recipe, put together from published ones.
  Batch norm over the global batch, gradual warm-up: MegDet (Peng et al. 2018) and LargeDet (Wang
    et al. 2020), which also trains with a LAMB (You et al. 2020), up to 1,056 images a step.
  Rate with the root of the batch size, 0.005 at 512 images, and 2.5 epochs of warm-up at 4,096:
    the LAMB paper's for ResNet-50 on ImageNet.
  16 epochs, rate divided at 12 and 14: the released recipe of AGVM (Xue et al. 2022) at 512.
Expected: below the 1x recipe of 16 images a step. NOT TRAINED HERE: the recipe is a start for
  tuning, not a result. Published for Faster R-CNN R50-FPN, AP on val2017: 37.1 at 32 images a
  step, 36.2 at 512 with SGD (the released AGVM), 33.5 at 1,536 with LargeDet's LAMB and 36.6 with
  AGVM, which modulates the rates of parts of the network and is not implemented here.
Cost: 460 steps of 4,096 images at 800 x 1333, about 1.5 TFLOP a training image; docs/pods.md has
  the time a step takes at least.

    python train.py configs/retinanet_r50_coco_pod.py --model.backbone.weights resnet50.pth
    harmonic-jax compile configs/retinanet_r50_coco_pod.py --topology v5e:16x16
"""

from harmonic_jax.config import Config, OptimConfig, ResNetConfig, RetinaNetConfig, TrainConfig
from harmonic_jax.recipes import COCO


def config() -> Config:
    return Config(
        name="retinanet_r50_coco_pod",
        data=COCO,
        model=RetinaNetConfig(backbone=ResNetConfig(depth=50, norm="batch")),
        optim=OptimConfig(
            optimizer="lamb",
            learning_rate=0.005,
            reference_batch_size=512,
            rate_scaling="sqrt",
            weight_decay=0.01,
            milestones=(12 / 16, 14 / 16),
            warmup_images=293_165,  # 2.5 epochs
        ),
        train=TrainConfig(
            steps=460,
            batch_size=4096,
            eval_batch_size=512,
            precision="bfloat16",
            log_every=10,
            eval_every=115,
            checkpoint_every=50,
        ),
    )
