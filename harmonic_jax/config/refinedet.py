"""RefineDet."""

import dataclasses
from typing import Literal

from harmonic_jax.checks import check_fields
from harmonic_jax.config.ssd import MultiBoxMatchConfig, MultiBoxPostprocessConfig, VGGConfig


@dataclasses.dataclass(frozen=True)
class RefineDetConfig:
    """RefineDet (Zhang et al. 2018) on VGG-16: levels of stride 8, 16, 32 and 64.

    The anchor refinement module (ARM) tells objects from background and moves the anchors; the
    object detection module (ODM) starts from those.
    """

    backbone: VGGConfig = VGGConfig()
    fc6_dilation: int = 3
    """Holes of fc6, which reads a map of stride 32; small images need smaller ones."""
    l2_scales: tuple[float, float] = (10.0, 8.0)
    """Length of the feature vectors of conv4_3 and conv5_3 at the start of training."""
    channels: int = 256
    """Of the transfer connection blocks."""
    deconv_size: Literal[2, 4] = 4
    """Kernel of the transposed convolutions: 4 in the paper's figure, 2 in its Caffe code."""
    size_factor: float = 4.0
    """Side of a level's square anchor in strides."""
    max_ratio: int = 2
    """Ratio of the longest anchors; 1: squares only."""
    min_objectness: float = 0.01
    """Anchors to which the ARM gives less are no negatives of the ODM, and detect nothing."""
    match: MultiBoxMatchConfig = MultiBoxMatchConfig()
    postprocess: MultiBoxPostprocessConfig = MultiBoxPostprocessConfig(
        topk_per_class=1000, max_detections=500
    )

    def __post_init__(self) -> None:
        check_fields(
            self,
            "model",
            fc6_dilation="[1, 64]",
            l2_scales="[0.001, 1000]",
            channels="[8, 4096]",
            size_factor="[0.01, 1000]",
            max_ratio="[1, 16]",
            min_objectness="[0, 1)",
        )

    @property
    def stride(self) -> int:
        """Padded sides must be multiples of this: none, every layer rounds its size up."""
        return 1

    @property
    def per_location(self) -> int:
        return 2 * self.max_ratio - 1
