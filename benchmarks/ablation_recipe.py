"""What the grids share: two small detectors on scenes of heavy occlusion, and the arms.

Every option that matters is written out, so that a later change of a config's default is no
change of an experiment. One budget and one learning rate for all arms of a detector; the rate is
the one that `grids/rates.py` found best for the baseline.
"""

import os

from harmonic_jax.config import RIVALS, LossConfig

# 6 to 14 items in a scene, half of them hidden by more than a fifth (docs/fashion_scenes.md).
SCENES = (
    *("--data.name", "fashion_scenes/crowded", "--data.max-objects", "14"),
    # Of as many images, small batches teach these detectors most.
    *("--train.batch-size", "4", "--train.eval-batch-size", "8", "--train.eval-every", "0"),
    *("--optim.ema-decay", "0.99"),
)
RETINANET = ("configs/retinanet_r18_scenes.py", *SCENES)
SSD = ("configs/ssd_vgg_scenes.py", *SCENES)
CASES = {
    "retinanet-scenes": (*RETINANET, "--train.steps", "2400", "--optim.learning-rate", "0.004"),
    "ssd-scenes": (*SSD, "--train.steps", "1600", "--optim.learning-rate", "0.002"),
}

# Of PASCAL VOC 2007, in the folder that the environment variable VOC2007 names: 256 pixels wide.
VOC = (
    *("--data.root", os.environ.get("VOC2007", "voc2007")),
    *("--data.short-sides", "192", "--data.max-side", "256"),
    *("--train.batch-size", "16", "--train.eval-batch-size", "32", "--train.eval-every", "0"),
    *("--optim.ema-decay", "0.99", "--optim.warmup-steps", "100"),
)

BASELINE = ("--loss.no-hardet", "--loss.cls-weight", "1")


def hardet(
    *,
    alpha: float = 1.5,
    gamma: float = 0.8,
    margin: float = 0.2,
    gradient: str = "through",
    source: str = "loss",
    cls_weight: float = 1.0,
) -> tuple[str, ...]:
    """The options of HarDet; the defaults are the paper's constants and its printed formula."""
    values = {
        "alpha": alpha, "gamma": gamma, "margin": margin,
        "factor-gradient": gradient, "factor-source": source, "cls-weight": cls_weight,
    }  # fmt: skip
    pairs = ((f"--loss.{name}", str(value)) for name, value in values.items())
    return ("--loss.hardet", *(word for pair in pairs for word in pair))


def rival(name: str) -> tuple[str, ...]:
    """The options of one of RIVALS: what it has otherwise than the baseline."""
    options, plain = [*BASELINE], LossConfig()
    for field in ("cls_loss", "focal_gamma", "box_loss", "box_weight", "correlation"):
        value = getattr(RIVALS[name], field)
        if value != getattr(plain, field):
            options += [f"--loss.{field.replace('_', '-')}", str(value)]
    return tuple(options)
