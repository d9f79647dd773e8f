"""RetinaNet."""

import dataclasses
from typing import Literal

from harmonic_jax.checks import check_fields, require
from harmonic_jax.config.parts import AnchorConfig, BackboneConfig, MatchConfig, PostprocessConfig


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
        check_fields(
            self,
            "model",
            levels="[3, 8]",
            channels="[8, 4096]",
            head_convs="[0, 16]",
            prior="(0, 1)",
        )
        low, high = self.levels
        require(
            3 <= low <= 5 <= high <= 8, "model.levels", self.levels, "3 <= first <= 5 <= last <= 8"
        )
        require(
            self.head_norm == "none" or self.channels % 8 == 0,
            "model.channels",
            self.channels,
            "a multiple of 8 with head_norm = group",
        )

    @property
    def stride(self) -> int:
        """Padded sides must be multiples of this: the backbone's last stride."""
        return 2 ** min(self.levels[1], 5)
