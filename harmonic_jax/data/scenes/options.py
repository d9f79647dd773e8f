"""How hard a fashion scene is, in one place."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SceneOptions:
    """Difficulty of rendered scenes. Lengths are pixels, pairs are (least, most).

    Raises:
      ValueError: a value outside of what its comment allows.
    """

    size: int = 128
    """Height and width of the image."""
    num_objects: tuple[int, int] = (2, 8)
    """Objects aimed at; one that finds no legal place after `max_tries` is left out."""
    object_size: tuple[float, float] = (34.0, 72.0)
    """Longer side of an item, upright and complete."""
    max_stretch: float = 1.15
    """An item's aspect ratio is multiplied by up to this, or divided."""
    max_rotation: float = 12.0
    """Degrees to either side of upright."""
    any_rotation: float = 0.02
    """Share of items that are turned by any angle instead."""
    adjacency: float = 0.2
    """Share of objects that are placed against an earlier one, so that they touch or overlap."""
    min_visible: float = 0.65
    """No object shows less than this fraction of its pixels, behind others and past the border."""
    min_side: int = 8
    """No box of visible pixels has a shorter side."""
    max_tries: int = 8
    num_bars: tuple[int, int] = (0, 1)
    """Bars in front of everything."""
    num_shapes: tuple[int, int] = (2, 9)
    """Lines, ellipses and polygons behind the objects."""
    num_scraps: tuple[int, int] = (0, 10)
    """Bits of items, under 8 item pixels wide, behind the objects; they are no objects."""
    min_contrast: float = 60.0
    """Grey levels between an object's mean colour and what it covers, in some channel."""
    max_blur: float = 0.7
    """Largest standard deviation of the blur of the whole image."""
    max_noise: float = 5.0
    """Largest standard deviation of the sensor noise, in grey levels."""

    def __post_init__(self) -> None:
        for field in ("num_objects", "object_size", "num_bars", "num_shapes", "num_scraps"):
            low, high = getattr(self, field)
            _require(0 <= low <= high, field, (low, high), "a pair 0 <= least <= most")
        _require(32 <= self.size <= 4096, "size", self.size, "in [32, 4096]")
        _require(self.num_objects[1] <= 255, "num_objects", self.num_objects, "at most 255")
        low, high = self.object_size
        _require(
            low >= 8 and high <= self.size,
            "object_size",
            self.object_size,
            f"between 8 and size = {self.size}",
        )
        for field in ("any_rotation", "adjacency", "min_visible"):
            value = getattr(self, field)
            _require(0.0 <= value <= 1.0, field, value, "in [0, 1]")
        _require(self.max_stretch >= 1.0, "max_stretch", self.max_stretch, ">= 1")
        for field in ("max_rotation", "min_contrast", "max_blur", "max_noise"):
            value = getattr(self, field)
            _require(value >= 0.0, field, value, ">= 0")
        for field in ("min_side", "max_tries"):
            value = getattr(self, field)
            _require(value >= 1, field, value, ">= 1")


def _require(condition: bool, field: str, value: object, legal: str) -> None:
    if not condition:
        raise ValueError(f"SceneOptions.{field} is {value!r}; it must be {legal}")


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
