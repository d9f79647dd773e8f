"""An experiment: data, detector, losses, optimizer and run, in frozen dataclasses.

They are checked when they are made and never changed after. A file in `configs/` builds one
`Config`; the command line replaces single fields by their path (`--optim.learning-rate 0.02`).
Every check names the field, its value and what is legal. Each room has its own settings; all of
them can be imported from here.
"""

import dataclasses
import operator
from typing import Annotated, Literal

from harmonic_jax.backbones import (
    BackboneConfig,
    EfficientNetLiteConfig,
    ResNetConfig,
    VGGConfig,
)
from harmonic_jax.checks import ConfigError, check_fields, require
from harmonic_jax.data.settings import AugmentConfig, DataConfig
from harmonic_jax.detectors import ModelConfig
from harmonic_jax.detectors.faster_rcnn import FasterRCNNConfig
from harmonic_jax.detectors.mask_rcnn import MaskHeadConfig, MaskRCNNConfig
from harmonic_jax.detectors.parts.anchors import AnchorConfig, DefaultBoxConfig
from harmonic_jax.detectors.parts.matching import MatchConfig
from harmonic_jax.detectors.parts.objective import LossConfig
from harmonic_jax.detectors.parts.queries import DenoisingConfig
from harmonic_jax.detectors.parts.rivals import RIVALS
from harmonic_jax.detectors.parts.selection import NmsName, PostprocessConfig
from harmonic_jax.detectors.refinedet import RefineDetConfig
from harmonic_jax.detectors.retinanet import RetinaNetConfig
from harmonic_jax.detectors.roi_head import BoxHeadConfig, RoIAlignConfig
from harmonic_jax.detectors.rpn import RPNConfig
from harmonic_jax.detectors.rtdetr import STRIDES, RTDETRConfig
from harmonic_jax.detectors.ssd import MultiBoxMatchConfig, SSDConfig

__all__ = [
    "BATCH_SIZES",
    "RIVALS",
    "AnchorConfig",
    "AugmentConfig",
    "BackboneConfig",
    "BoxHeadConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DefaultBoxConfig",
    "DenoisingConfig",
    "EfficientNetLiteConfig",
    "FasterRCNNConfig",
    "LossConfig",
    "MaskHeadConfig",
    "MaskRCNNConfig",
    "MatchConfig",
    "ModelConfig",
    "MultiBoxMatchConfig",
    "NmsName",
    "OptimConfig",
    "PostprocessConfig",
    "RPNConfig",
    "RTDETRConfig",
    "RefineDetConfig",
    "ResNetConfig",
    "RetinaNetConfig",
    "RoIAlignConfig",
    "SSDConfig",
    "TrainConfig",
    "VGGConfig",
]

BATCH_SIZES = "[1, 65536]"


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer and the course of the learning rate."""

    optimizer: Literal["sgd", "adamw", "lars", "lamb"] = "sgd"
    learning_rate: Annotated[float, "(0, 1000]"] = 0.01
    reference_batch_size: Annotated[int | None, BATCH_SIZES] = None
    """The batch size that learning_rate is meant for: the rate is scaled from it to
    train.batch_size. None: the rate is used as it is."""
    rate_scaling: Literal["linear", "sqrt"] = "linear"
    """How the rate grows with the batch size, by its ratio (SGD, LARS) or the ratio's root."""
    momentum: Annotated[float, "[0, 1)"] = 0.9
    """SGD's and LARS's momentum; b1 of AdamW and LAMB."""
    trust_coefficient: Annotated[float, "(0, 1000]"] = 0.001
    """LARS: a kernel's step is this part of its norm, times the learning rate."""
    weight_decay: Annotated[float, "[0, 1000]"] = 1e-4
    """Never applied to norms and biases."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: Annotated[tuple[float, ...], "(0, 1)"] = (2 / 3, 8 / 9)
    """Where `step` divides the rate by ten, as fractions of the run."""
    warmup_steps: Annotated[int, "[0, 1e9]"] = 500
    warmup_images: Annotated[int | None, "[0, 1e12]"] = None
    """Length of the warm-up in images instead, whatever the batch size; an epoch of COCO's
    train2017 has 117,266."""
    warmup_factor: Annotated[float, "[0, 1]"] = 0.001
    """The warm-up starts at this fraction of the rate and rises linearly."""
    clip_norm: Annotated[float | None, "(0, 1e9]"] = None
    """Bound of the gradient's global norm."""
    ema_decay: Annotated[float | None, "(0, 1)"] = None
    """Evaluate an exponential moving average of the parameters with this decay."""
    rate_factors: Annotated[tuple[tuple[str, float], ...], "[0, 1000]"] = ()
    """Factors of the learning rate for parts of the network, `backbone 0.1 backbone/stages/3 1`:
    the longest path that a parameter's begins with counts. 0 leaves the part as it is."""
    accumulate: Annotated[int, BATCH_SIZES] = 1
    """Parts a batch is split into, one after the other; the update is that of the whole."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which gradients are summed over the devices; bfloat16 sends half of the bytes."""

    def __post_init__(self) -> None:
        check_fields(self, "optim")
        require(
            all(map(operator.lt, self.milestones, self.milestones[1:])),
            "optim.milestones",
            self.milestones,
            "increasing fractions",
        )
        require(
            len(dict(self.rate_factors)) == len(self.rate_factors),
            "optim.rate_factors",
            self.rate_factors,
            "different paths, each with a factor",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run: how long, how often, how exactly."""

    steps: Annotated[int, "[1, 1e9]"] = 90_000
    batch_size: Annotated[int, BATCH_SIZES] = 16
    """Images a step over all devices and hosts."""
    eval_batch_size: Annotated[int | None, BATCH_SIZES] = None
    """None: the training batch size. Rounded up to a multiple of the devices."""
    seed: Annotated[int, "[0, 2147483647]"] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the network; parameters, boxes and losses are float32 always."""
    log_every: Annotated[int, "[1, 1e9]"] = 20
    eval_every: Annotated[int, "[0, 1e9]"] = 10_000
    """0: only at the end."""
    checkpoint_every: Annotated[int, "[1, 1e9]"] = 1_000
    keep_checkpoints: Annotated[int, "[1, 1e6]"] = 2
    step_timeout: Annotated[int, "[0, 1e6]"] = 600
    """Seconds without a completed step or evaluation batch after which a run of several processes
    writes the stacks of all threads and ends; 0: never."""
    profile: Annotated[tuple[int, int] | None, "[1, 1e9]"] = None
    """First and last step of a profiler trace, counted from 1."""

    def __post_init__(self) -> None:
        check_fields(self, "train")
        require(
            self.profile is None or self.profile[0] <= self.profile[1] <= self.steps,
            "train.profile",
            self.profile,
            f"(first, last) with first <= last <= {self.steps}",
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str
    """Names the run's folder, `runs/NAME`, unless run_dir is given."""
    data: DataConfig = DataConfig()
    model: ModelConfig = RetinaNetConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    init: str | None = None
    """A run, trained or imported, whose best variables this run starts from: its folder, or what
    `export-weights` wrote of it. RUN/checkpoints stands for the newest checkpoint instead;
    retinanet_lite0_voc, hf:OWNER/NAME and torchvision:NAME are published detectors. It brings the
    backbone too: model.backbone.weights is not read then."""
    run_dir: str | None = None
    """Where checkpoints, logs and reports go; a run found there is continued."""

    def __post_init__(self) -> None:
        check_fields(self, "config")
        require(
            "/" not in self.name and self.name not in (".", "..") and len(self.name) <= 100,
            "config.name",
            self.name,
            "the name of a folder, of at most 100 letters and without /",
        )
        parts, whole = self.optim.accumulate, self.train.batch_size
        legal = f"a divisor of train.batch_size = {whole}"
        require(whole % parts == 0, "optim.accumulate", parts, legal)
        is_retinanet = isinstance(self.model, RetinaNetConfig)
        # RT-DETR's sigmoids take any loss of single samples.
        is_free = isinstance(self.model, RTDETRConfig) and not self.loss.is_weighted
        usual = {"cls_loss": "focal", "box_loss": "smooth_l1", "correlation": "none"}
        for field, name in usual.items():
            value, also = getattr(self.loss, field), field == "cls_loss"
            legal = f"{name} with any detector but RetinaNet"
            legal += " (and, of single samples, RT-DETR)" * also
            is_legal = value == name or is_retinanet or (is_free and also)
            require(is_legal, f"loss.{field}", value, legal)
        if isinstance(self.model, RTDETRConfig):
            number, most = self.model.num_queries, self.data.max_objects
            legal = f"at least data.max_objects = {most}: an object takes a query"
            require(most <= number, "model.num_queries", number, legal)
            for height, width in self.data.buckets:
                cells = sum(height // s * (width // s) for s in STRIDES)
                legal = (
                    f"at most {cells}, the cells of {height} x {width} pixels: each may be a query"
                )
                require(most <= cells, "data.max_objects", most, legal)
        needed, stride = self.model.stride, self.data.stride
        legal = f"a multiple of {needed}, the backbone's last stride"
        require(stride % needed == 0, "data.stride", stride, legal)
        if isinstance(self.model, SSDConfig):
            for bucket in self.data.buckets:
                self.model.level_shapes(bucket)  # refuses a size at which a level has no cell
