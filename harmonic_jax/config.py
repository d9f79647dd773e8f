"""Configuration: frozen dataclasses, checked when they are made and never changed after.

A file in `configs/` builds one `Config`; the command line replaces single fields by their path
(`--optim.learning-rate 0.02`). Every check names the field, its value and what is legal.
"""

import dataclasses
import math
from typing import Literal, get_args, get_origin, get_type_hints

FactorGradient = Literal["through", "stop", "cls_only"]
FactorSource = Literal["loss", "ce"]


class ConfigError(ValueError):
    """A configuration value that cannot work."""


def _require(condition: bool, field: str, value: object, legal: str) -> None:
    if not condition:
        raise ConfigError(f"{field} is {value!r}; it must be {legal}")


def _check_choices(config: object, prefix: str) -> None:
    """Checks every field whose type is a Literal: dataclasses do not."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            choices = get_args(hint)
            value = getattr(config, name)
            legal = " or ".join(map(str, choices))
            _require(value in choices, f"{prefix}.{name}", value, legal)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images, applied in this order."""

    photometric: bool = False
    """Brightness, contrast, saturation, hue and channel order, as SSD does."""
    expand: float = 1.0
    """Largest side ratio of the canvas an image may be placed on (SSD: 4); 1 is off."""
    crop: bool = False
    """SSD's random crop with a minimum IoU to some object."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: float = 0.0
    """Probability of a vertical flip, for images without an up (microscopes, satellites)."""

    def __post_init__(self) -> None:
        _require(1.0 <= self.expand <= 8.0, "augment.expand", self.expand, "in [1, 8]")
        _require(0.0 <= self.flip <= 1.0, "augment.flip", self.flip, "in [0, 1]")
        _require(
            0.0 <= self.vertical_flip <= 1.0,
            "augment.vertical_flip",
            self.vertical_flip,
            "in [0, 1]",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images and boxes come from, and the shapes in which they reach the network."""

    format: Literal["tfds", "coco", "voc"] = "tfds"
    """`tfds`: a TFDS name; `coco`: a folder in COCO JSON layout; `voc`: one in VOC XML layout."""
    name: str = "fashion_scenes"
    """TFDS name: `fashion_scenes`, `coco/2017`, `voc/2007`, `voc/2007+2012`; unused for folders."""
    root: str | None = None
    """The folder of the data; with `tfds`, the TFDS data directory (None: its default)."""
    train_split: str = "train"
    eval_split: str = "validation"
    short_sides: tuple[int, ...] = (800,)
    """Training images are resized so that the short side is one of these; evaluation: the last."""
    max_side: int = 1333
    """Upper bound of the long side after resizing."""
    resize: Literal["fit", "warp"] = "fit"
    """`fit` keeps the aspect ratio and pads; `warp` stretches to short_side x short_side (SSD)."""
    stride: int = 32
    """Padded sides are multiples of this."""
    max_objects: int = 100
    """Objects an image is padded to; of more, the largest are kept and the rest counted."""
    max_pixels: int = 64_000_000
    """Images with more pixels are refused before they are decoded."""
    use_difficult: bool = True
    """Train on VOC objects marked difficult (evaluation ignores them either way)."""
    keep_empty: bool = False
    """Train on images without objects."""
    augment: AugmentConfig = AugmentConfig()
    num_threads: int = 4
    """Decoding threads in each process."""

    def __post_init__(self) -> None:
        _check_choices(self, "data")
        _require(
            self.format == "tfds" or self.root is not None,
            "data.root",
            self.root,
            f"the folder of the {self.format} data set (--data.root DIR)",
        )
        sides = self.short_sides
        _require(
            len(sides) > 0 and all(32 <= side <= 4096 for side in sides),
            "data.short_sides",
            sides,
            "one or more sizes in pixels, each in [32, 4096]",
        )
        _require(self.max_side >= max(sides), "data.max_side", self.max_side, f">= {max(sides)}")
        _require(1 <= self.stride <= 256, "data.stride", self.stride, "in [1, 256]")
        _require(self.max_objects >= 1, "data.max_objects", self.max_objects, ">= 1")
        _require(self.max_pixels >= 1024, "data.max_pixels", self.max_pixels, ">= 1024")
        _require(1 <= self.num_threads <= 256, "data.num_threads", self.num_threads, "in [1, 256]")

    @property
    def buckets(self) -> tuple[tuple[int, int], ...]:
        """The padded (height, width) shapes: landscape and portrait, or one where they agree."""
        short = _round_up(max(self.short_sides), self.stride)
        if self.resize == "warp":
            return ((short, short),)
        long = _round_up(self.max_side, self.stride)
        return ((short, long), (long, short)) if long > short else ((short, short),)


def _round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """ResNet (He et al. 2016, v1.5: the stride sits on the 3x3 convolution)."""

    depth: Literal[18, 34, 50, 101] = 50
    width: int = 64
    """Channels of the stem; 64 is the published network."""
    norm: Literal["frozen", "batch"] = "frozen"
    """`frozen`: constant statistics and affine; `batch`: statistics of the global batch."""
    frozen_stages: int = 0
    """Stages that are not trained: 1 is the stem, 2 adds the first residual stage, up to 5."""
    weights: str | None = None
    """A torchvision-layout ResNet state dict: .safetensors, or .pth (read with weights_only)."""

    def __post_init__(self) -> None:
        _check_choices(self, "backbone")
        _require(self.width >= 8, "backbone.width", self.width, ">= 8")
        _require(
            0 <= self.frozen_stages <= 5, "backbone.frozen_stages", self.frozen_stages, "in [0, 5]"
        )


@dataclasses.dataclass(frozen=True)
class AnchorConfig:
    """Anchors of a pyramid: level l, stride 2**l, has base size `size_factor * 2**l`."""

    size_factor: float = 4.0
    scales: tuple[float, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""

    def __post_init__(self) -> None:
        _require(self.size_factor > 0, "anchors.size_factor", self.size_factor, "> 0")
        for field, values in (("scales", self.scales), ("ratios", self.ratios)):
            _require(
                len(values) > 0 and all(v > 0 for v in values),
                f"anchors.{field}",
                values,
                "one or more positive numbers",
            )

    @property
    def per_location(self) -> int:
        return len(self.scales) * len(self.ratios)


@dataclasses.dataclass(frozen=True)
class MatchConfig:
    """Max-IoU assignment."""

    positive_iou: float = 0.5
    negative_iou: float = 0.4
    """Anchors with a best IoU in [negative_iou, positive_iou) are ignored."""
    low_quality: bool = True
    """Each object also claims the anchors that overlap it most, whatever their IoU."""

    def __post_init__(self) -> None:
        _require(
            0.0 <= self.negative_iou <= self.positive_iou <= 1.0,
            "match.negative_iou, match.positive_iou",
            (self.negative_iou, self.positive_iou),
            "0 <= negative_iou <= positive_iou <= 1",
        )


@dataclasses.dataclass(frozen=True)
class PostprocessConfig:
    """From raw predictions to final boxes."""

    score_threshold: float = 0.05
    topk_per_level: int = 1000
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        for field in ("score_threshold", "nms_iou"):
            value = getattr(self, field)
            _require(0.0 <= value <= 1.0, f"postprocess.{field}", value, "in [0, 1]")
        for field in ("topk_per_level", "max_detections"):
            value = getattr(self, field)
            _require(value >= 1, f"postprocess.{field}", value, ">= 1")


@dataclasses.dataclass(frozen=True)
class RetinaNetConfig:
    """RetinaNet (Lin et al. 2017) on a ResNet feature pyramid."""

    backbone: BackboneConfig = BackboneConfig()
    levels: tuple[int, int] = (3, 7)
    """First and last pyramid level."""
    extra_levels_from: Literal["c5", "p5"] = "c5"
    """What the levels above 5 are computed from: the paper's C5, or P5."""
    channels: int = 256
    head_convs: int = 4
    head_norm: Literal["none", "group"] = "none"
    """`group` helps training from scratch; the published head has none."""
    prior: float = 0.01
    """Score of every class at the start of training."""
    anchors: AnchorConfig = AnchorConfig()
    match: MatchConfig = MatchConfig()
    postprocess: PostprocessConfig = PostprocessConfig()

    def __post_init__(self) -> None:
        _check_choices(self, "model")
        low, high = self.levels
        _require(
            3 <= low <= 5 <= high <= 8, "model.levels", self.levels, "3 <= first <= 5 <= last <= 8"
        )
        _require(self.channels >= 8, "model.channels", self.channels, ">= 8")
        _require(self.head_convs >= 0, "model.head_convs", self.head_convs, ">= 0")
        _require(0.0 < self.prior < 1.0, "model.prior", self.prior, "in (0, 1)")
        _require(
            self.head_norm == "none" or self.channels % 8 == 0,
            "model.channels",
            self.channels,
            "a multiple of 8 with head_norm = group",
        )


ModelConfig = RetinaNetConfig


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Focal loss and SmoothL1, joined by HarDet where `hardet` is set."""

    hardet: bool = True
    """The Harmonic, task-contrastive and Harmonic IoU losses; off: the plain baseline."""
    alpha: float = 1.5
    """Weight of the Harmonic IoU loss."""
    gamma: float = 0.8
    """Exponent of the Harmonic IoU loss; above 1 it is not monotone in the IoU."""
    margin: float = 0.2
    """Difference of score and IoU that the task-contrastive loss forgives."""
    factor_gradient: FactorGradient = "through"
    factor_source: FactorSource = "loss"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    smooth_l1_beta: float = 0.11
    box_weight: float = 1.0
    """Weight of the localization loss of the baseline; HarDet uses it on SmoothL1 too."""

    def __post_init__(self) -> None:
        _check_choices(self, "loss")
        for field in ("alpha", "focal_gamma", "smooth_l1_beta", "box_weight"):
            value = getattr(self, field)
            _require(value >= 0.0, f"loss.{field}", value, ">= 0")
        _require(0.0 <= self.gamma <= 1.0, "loss.gamma", self.gamma, "in [0, 1]")
        _require(0.0 <= self.margin <= 1.0, "loss.margin", self.margin, "in [0, 1]")
        _require(0.0 <= self.focal_alpha <= 1.0, "loss.focal_alpha", self.focal_alpha, "in [0, 1]")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer and the course of the learning rate."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    """SGD's momentum; AdamW's b1."""
    weight_decay: float = 1e-4
    """Never applied to norms and biases."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    """Where `step` divides the rate by ten, as fractions of the run."""
    warmup_steps: int = 500
    warmup_factor: float = 0.001
    """The warm-up starts at this fraction of the rate and rises linearly."""
    clip_norm: float | None = None
    """Bound of the gradient's global norm."""
    ema_decay: float | None = None
    """Evaluate an exponential moving average of the parameters with this decay."""
    accumulate: int = 1
    """Parts a batch is split into, one after the other; the update is that of the whole."""

    def __post_init__(self) -> None:
        _check_choices(self, "optim")
        _require(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "> 0")
        _require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "in [0, 1)")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, ">= 0")
        _require(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, ">= 0")
        _require(
            0 <= self.warmup_factor <= 1, "optim.warmup_factor", self.warmup_factor, "in [0, 1]"
        )
        _require(
            all(0 < m < 1 for m in self.milestones)
            and tuple(sorted(self.milestones)) == tuple(self.milestones),
            "optim.milestones",
            self.milestones,
            "increasing fractions in (0, 1)",
        )
        _require(
            self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "> 0"
        )
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "optim.ema_decay",
            self.ema_decay,
            "in (0, 1)",
        )
        _require(self.accumulate >= 1, "optim.accumulate", self.accumulate, ">= 1")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run: how long, how often, how exactly."""

    steps: int = 90_000
    batch_size: int = 16
    """Images a step over all devices and hosts."""
    eval_batch_size: int | None = None
    """None: the training batch size."""
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the network; parameters, boxes and losses are float32 always."""
    log_every: int = 20
    eval_every: int = 10_000
    """0: only at the end."""
    checkpoint_every: int = 1_000
    keep_checkpoints: int = 2
    profile: tuple[int, int] | None = None
    """First and last step of a profiler trace, counted from 1."""

    def __post_init__(self) -> None:
        _check_choices(self, "train")
        for field in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            value = getattr(self, field)
            _require(value >= 1, f"train.{field}", value, ">= 1")
        _require(
            self.eval_batch_size is None or self.eval_batch_size >= 1,
            "train.eval_batch_size",
            self.eval_batch_size,
            ">= 1",
        )
        _require(self.eval_every >= 0, "train.eval_every", self.eval_every, ">= 0")
        _require(
            self.profile is None or 1 <= self.profile[0] <= self.profile[1] <= self.steps,
            "train.profile",
            self.profile,
            f"(first, last) with 1 <= first <= last <= {self.steps}",
        )
        _require(0 <= self.seed < 2**31, "train.seed", self.seed, "in [0, 2**31)")


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
    run_dir: str | None = None
    """Where checkpoints, logs and reports go; a run found there is continued."""

    def __post_init__(self) -> None:
        _require(
            self.train.batch_size % self.optim.accumulate == 0,
            "optim.accumulate",
            self.optim.accumulate,
            f"a divisor of train.batch_size = {self.train.batch_size}",
        )
        needed = 2 ** min(self.model.levels[1], 5)
        _require(
            self.data.stride % needed == 0,
            "data.stride",
            self.data.stride,
            f"a multiple of {needed}, the backbone's last stride",
        )
