"""One experiment: all configs together."""

import dataclasses

from harmonic_jax.checks import check_fields, require
from harmonic_jax.config.loss import LossConfig
from harmonic_jax.config.models import ModelConfig
from harmonic_jax.config.retinanet import RetinaNetConfig
from harmonic_jax.config.ssd import SSDConfig
from harmonic_jax.config.training import OptimConfig, TrainConfig
from harmonic_jax.data.settings import DataConfig


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
    """A run, trained or imported, whose best variables this run starts from: its folder, or a file
    that `export --to safetensors` or `export-weights` wrote of it. RUN/checkpoints stands for the
    newest checkpoint instead."""
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
        require(
            self.train.batch_size % self.optim.accumulate == 0,
            "optim.accumulate",
            self.optim.accumulate,
            f"a divisor of train.batch_size = {self.train.batch_size}",
        )
        require(
            self.init is None or self.model.backbone.weights is None,
            "model.backbone.weights",
            self.model.backbone.weights,
            "None with init, which brings the backbone too",
        )
        for field, usual in (
            ("cls_loss", "focal"),
            ("box_loss", "smooth_l1"),
            ("correlation", "none"),
        ):
            value = getattr(self.loss, field)
            require(
                value == usual or isinstance(self.model, RetinaNetConfig),
                f"loss.{field}",
                value,
                f"{usual} with any detector but RetinaNet",
            )
        needed = self.model.stride
        require(
            self.data.stride % needed == 0,
            "data.stride",
            self.data.stride,
            f"a multiple of {needed}, the backbone's last stride",
        )
        if isinstance(self.model, SSDConfig):
            for bucket in self.data.buckets:
                self.model.level_shapes(bucket)  # refuses a size at which a level has no cell
