"""How hard a fashion scene is, in one place."""

import dataclasses
from typing import Annotated

from harmonic_jax.checks import check_fields, require

_SHARE, _NUMBER = "[0, 1]", "[0, 1000]"


@dataclasses.dataclass(frozen=True)
class SceneOptions:
    """Difficulty of rendered scenes. Lengths are pixels, pairs are (least, most).

    Raises:
      ConfigError: a value that cannot work.
    """

    size: Annotated[int, "[32, 4096]"] = 128
    """Height and width of the image."""
    num_objects: Annotated[tuple[int, int], "[0, 255]"] = (2, 8)
    """Objects aimed at; one that finds no legal place after `max_tries` is left out."""
    object_size: Annotated[tuple[float, float], "[8, 4096]"] = (34.0, 72.0)
    """Longer side of an item, upright and complete."""
    max_stretch: Annotated[float, "[1, 100]"] = 1.15
    """An item's aspect ratio is multiplied by up to this, or divided."""
    max_rotation: Annotated[float, "[0, 360]"] = 12.0
    """Degrees to either side of upright."""
    any_rotation: Annotated[float, _SHARE] = 0.02
    """Share of items that are turned by any angle instead."""
    adjacency: Annotated[float, _SHARE] = 0.2
    """Share of objects that are placed against an earlier one, so that they touch or overlap."""
    min_visible: Annotated[float, _SHARE] = 0.65
    """No object shows less than this fraction of its pixels, behind others and past the border."""
    min_side: Annotated[int, "[1, 4096]"] = 8
    """No box of visible pixels has a shorter side."""
    max_tries: Annotated[int, "[1, 1000]"] = 8
    num_bars: Annotated[tuple[int, int], _NUMBER] = (0, 1)
    """Bars in front of everything."""
    num_shapes: Annotated[tuple[int, int], _NUMBER] = (2, 9)
    """Lines, ellipses and polygons behind the objects."""
    num_scraps: Annotated[tuple[int, int], _NUMBER] = (0, 10)
    """Bits of items, under 8 item pixels wide, behind the objects; they are no objects."""
    min_contrast: Annotated[float, "[0, 255]"] = 60.0
    """Grey levels between an object's mean colour and what it covers, in some channel."""
    max_blur: Annotated[float, "[0, 100]"] = 0.7
    """Largest standard deviation of the blur of the whole image."""
    max_noise: Annotated[float, "[0, 255]"] = 5.0
    """Largest standard deviation of the sensor noise, in grey levels."""

    def __post_init__(self) -> None:
        check_fields(self, "SceneOptions")
        for field in ("num_objects", "object_size", "num_bars", "num_shapes", "num_scraps"):
            least, most = getattr(self, field)
            require(least <= most, f"SceneOptions.{field}", (least, most), "a pair least <= most")
        most = self.object_size[1]
        require(most <= self.size, "SceneOptions.object_size", most, f"at most size = {self.size}")


CROWDED = SceneOptions(
    num_objects=(6, 14),
    object_size=(22.0, 56.0),
    max_rotation=30.0,
    any_rotation=0.1,
    adjacency=0.8,
    min_visible=0.25,
    min_side=6,
    num_bars=(0, 3),
    num_scraps=(2, 14),
)
"""Heavy occlusion: many objects, most of them against or behind another."""
