"""TPU chips and how they are wired: published figures, and the names of slices.

Sources, by the titles of the pages. "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e": the pages of the
Cloud TPU documentation, sections "System architecture". "How to Think About TPUs": part 2 of
"How To Scale Your Model" (Google DeepMind, 2025), tables of the section "TPU specs"; its rates of
a link are those that applications reach, a tenth below the nominal ones of the documentation.
"""

import dataclasses
import math
import re
from collections.abc import Mapping

GIB = 2**30


class TopologyError(ValueError):
    """A name of a slice that no pod has."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates of a chip, in a second."""

    name: str
    flops: float  # of bfloat16 matrix products; 2 for a multiply-add
    memory: int  # bytes of HBM
    memory_rate: float  # bytes between HBM and the chip
    link_rate: float  # bytes that a link to a neighbour carries in one direction
    network_rate: float  # bytes a chip sends to other slices over the data centre's network
    num_axes: int  # of the torus
    max_axes: tuple[int, ...]  # the largest slice
    wraps_at: int  # see `Slice.wraps`


# The largest slice of v4 and v5p is bounded here by what the tables go up to, 1024 chips.
CHIPS: Mapping[str, Chip] = {
    "v4": Chip(
        name="v4",
        flops=275e12,  # "TPU v4": peak compute per chip
        memory=32 * GIB,  # "TPU v4": HBM2 capacity
        memory_rate=1200e9,  # "TPU v4": HBM2 bandwidth
        link_rate=45e9,  # "How to Think About TPUs": ICI BW/link (one-way)
        network_rate=6.25e9,  # "How to Think About TPUs": DCN
        num_axes=3,
        max_axes=(16, 16, 16),  # "TPU v4": TPU Pod size
        wraps_at=4,
    ),
    "v5e": Chip(
        name="v5e",
        flops=197e12,  # "TPU v5e": peak compute per chip (bf16)
        memory=16 * GIB,  # "TPU v5e": HBM2 capacity
        memory_rate=819e9,  # "TPU v5e": HBM2 bandwidth
        link_rate=45e9,  # "How to Think About TPUs": ICI BW/link (one-way)
        network_rate=3.125e9,  # "TPU v5e": 6.4 Tbps a pod of 256 chips
        num_axes=2,
        max_axes=(16, 16),  # "TPU v5e": TPU Pod size
        wraps_at=16,
    ),
    "v5p": Chip(
        name="v5p",
        flops=459e12,  # "TPU v5p": peak compute per chip (bf16)
        memory=95 * GIB,  # "TPU v5p": HBM2e capacity
        memory_rate=2765e9,  # "TPU v5p": HBM2e bandwidth
        link_rate=90e9,  # "How to Think About TPUs": ICI BW/link (one-way)
        network_rate=6.25e9,  # "How to Think About TPUs": DCN
        num_axes=3,
        max_axes=(16, 16, 24),  # "TPU v5p": the largest job
        wraps_at=4,
    ),
    "v6e": Chip(
        name="v6e",
        flops=918e12,  # "TPU v6e": peak compute per chip (bf16)
        memory=32 * GIB,  # "TPU v6e": HBM capacity per chip
        memory_rate=1600e9,  # "TPU v6e": HBM bandwidth per chip
        link_rate=90e9,  # "How to Think About TPUs": ICI BW/link (one-way)
        network_rate=12.5e9,  # "TPU v6e": 25.6 Tbps a pod of 256 chips
        num_axes=2,
        max_axes=(16, 16),  # "TPU v6e": TPU Pod size
        wraps_at=16,
    ),
}

# Slices of 4, 16, .. 1024 chips; more than a pod of v5e or v6e are several slices.
_SCALING_AXES: Mapping[int, Mapping[int, tuple[int, ...]]] = {
    2: {4: (2, 2), 16: (4, 4), 64: (8, 8), 256: (16, 16)},
    3: {4: (2, 2, 1), 16: (2, 2, 4), 64: (4, 4, 4), 256: (4, 8, 8), 1024: (8, 8, 16)},
}
SCALING_CHIPS = (4, 16, 64, 256, 1024)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips wired to each other, and how many such slices train together."""

    chip: Chip
    axes: tuple[int, ...]
    num_slices: int = 1

    @property
    def chips_per_slice(self) -> int:
        return math.prod(self.axes)

    @property
    def num_chips(self) -> int:
        return self.chips_per_slice * self.num_slices

    @property
    def topology(self) -> str:
        """The name of one slice."""
        return f"{self.chip.name}:{'x'.join(map(str, self.axes))}"

    @property
    def name(self) -> str:
        return self.topology if self.num_slices == 1 else f"{self.num_slices} x {self.topology}"

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Whether the ends of an axis are connected, so that the axis is a ring.

        v5e and v6e: only an axis of the whole pod is. v4 and v5p: all axes, in slices made of
        whole cubes of 4 x 4 x 4 chips.
        """
        if self.chip.num_axes == 2:
            return tuple(length == self.chip.wraps_at for length in self.axes)
        return (all(n % self.chip.wraps_at == 0 for n in self.axes),) * len(self.axes)

    @property
    def all_reduce_rate(self) -> float:
        """Bytes a second that a chip can send in a ring all-reduce over all axes at once.

        Along a ring both directions carry data; along a line the same two rings fold onto
        links that they share. An axis of length 1 has no link.
        """
        links = sum(
            (2 if wraps else 1) for n, wraps in zip(self.axes, self.wraps, strict=True) if n > 1
        )
        return links * self.chip.link_rate


def parse_slice(name: str) -> Slice:
    """The slice of a name such as `v5e:16x16` or `v4:2x2x1`.

    Raises:
      TopologyError: there is no such chip, or its pods have no such slice.

    >>> parse_slice("v5e:16x16").num_chips
    256
    """
    match = re.fullmatch(r"(\w+):(\d{1,4}(?:x\d{1,4})*)", name)
    chip = CHIPS.get(match[1]) if match else None
    if match is None or chip is None:
        raise TopologyError(
            f"topology is {name!r}; it must be CHIP:AxB or CHIP:AxBxC with the chip one of "
            f"{', '.join(CHIPS)}, such as v5e:16x16 or v4:2x2x1"
        )
    axes = tuple(int(n) for n in match[2].split("x"))
    largest = "x".join(map(str, chip.max_axes))
    # Slices are turned as they fit: 8x4 is 4x8.
    fits = all(n <= most for n, most in zip(sorted(axes), sorted(chip.max_axes), strict=False))
    if len(axes) != chip.num_axes or not fits or min(axes) < 1:
        raise TopologyError(
            f"topology is {name!r}; {chip.name} has {chip.num_axes} axes, at most {largest}"
        )
    if any(n > 1 and n % 2 for n in axes):
        raise TopologyError(f"topology is {name!r}; every axis must be 1 or even")
    return Slice(chip, axes)


def scaling_slices(chip: Chip) -> list[Slice]:
    """Slices of 4 to 1024 chips, of several pods where a pod is smaller."""
    axes = _SCALING_AXES[chip.num_axes]
    largest = max(axes)
    return [
        Slice(chip, axes[min(n, largest)], num_slices=max(1, n // largest)) for n in SCALING_CHIPS
    ]
