"""The shortest time a step can take: of its arithmetic, its memory traffic, its collectives.

    step = max(flops / peak, bytes / memory rate, interconnect)

No step is faster; a real one is slower, as no unit is ever busy all of the time.
"""

import dataclasses
from collections.abc import Sequence

from harmonic_jax.pods.chips import Chip, Slice, scaling_slices
from harmonic_jax.pods.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Work:
    """What one chip does in a step.

    Attributes:
      images: of its share of the batch.
      flops: arithmetic operations.
      memory_bytes: read from and written to HBM.
      reduced_bytes: combined by all-reduces.
      other_wire_bytes: sent by collectives of other kinds.
      peak_bytes: of HBM in use at once.
    """

    images: float
    flops: float
    memory_bytes: float
    reduced_bytes: float
    other_wire_bytes: float
    peak_bytes: float


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each unit of a chip needs for a step, were it alone."""

    images: float  # of a chip
    num_chips: int
    compute: float
    memory: float
    interconnect: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.interconnect)

    @property
    def bound(self) -> str:
        """The unit that decides."""
        times = {"compute": self.compute, "HBM": self.memory, "interconnect": self.interconnect}
        return max(times, key=lambda unit: times[unit])

    @property
    def images_per_second(self) -> float:
        """Of the whole pod."""
        return self.images * self.num_chips / self.step

    @property
    def images_per_second_per_chip(self) -> float:
        return self.images / self.step


def collective_bytes(collectives: Sequence[Collective]) -> tuple[float, float]:
    """(bytes combined by all-reduces, bytes sent by all others), a device and step."""
    reduced = sum(c.num_bytes * c.num_runs for c in collectives if c.kind == "all-reduce")
    others = sum(c.wire_bytes * c.num_runs for c in collectives if c.kind != "all-reduce")
    return float(reduced), float(others)


def roofline(work: Work, pod: Slice) -> Roofline:
    """The bound of a step's time on a slice."""
    return Roofline(
        images=work.images,
        num_chips=pod.num_chips,
        compute=work.flops / pod.chip.flops,
        memory=work.memory_bytes / pod.chip.memory_rate,
        interconnect=interconnect_seconds(work, pod),
    )


def interconnect_seconds(work: Work, pod: Slice) -> float:
    """Time of the collectives, without latency.

    A ring all-reduce over n chips sends 2 (n - 1) / n of the bytes from each chip, over all links
    of the slice. Several slices first reduce within, so that each chip holds its n-th, exchange
    these over the data centre's network, and gather within.
    """
    n, slices = pod.chips_per_slice, pod.num_slices
    seconds = 0.0
    if n > 1:
        sent = 2 * (n - 1) / n * work.reduced_bytes + work.other_wire_bytes
        seconds += sent / pod.all_reduce_rate
    if slices > 1:
        sent = 2 * (slices - 1) / slices * work.reduced_bytes / n
        seconds += sent / pod.chip.network_rate
    return seconds


def work_at(images: float, measured: Sequence[Work]) -> Work:
    """The work of a chip with another share of the batch.

    With two compiled shares it is the straight line through them: most of the work grows with
    the images, and the optimizer's does not. With one it is that share's, in proportion.
    What is reduced are gradients and sums, whose size does not depend on the images.
    """
    first = measured[0]

    def at(field: str) -> float:
        value = float(getattr(first, field))
        if len(measured) == 1:
            return value * images / first.images
        second = measured[1]
        slope = (getattr(second, field) - value) / (second.images - first.images)
        return max(0.0, value + slope * (images - first.images))

    return dataclasses.replace(
        first,
        images=images,
        flops=at("flops"),
        memory_bytes=at("memory_bytes"),
        peak_bytes=at("peak_bytes"),
    )


@dataclasses.dataclass(frozen=True)
class ScalingRow:
    """A step on a number of chips, derived from what was compiled."""

    pod: Slice
    work: Work
    roofline: Roofline

    @property
    def fits(self) -> bool:
        return self.work.peak_bytes <= self.pod.chip.memory


def scale_fixed_share(chip: Chip, measured: Sequence[Work]) -> list[ScalingRow]:
    """4 to 1024 chips, each with as many images as the first that was compiled."""
    work = measured[0]
    return [ScalingRow(pod, work, roofline(work, pod)) for pod in scaling_slices(chip)]


def scale_fixed_batch(chip: Chip, measured: Sequence[Work], batch: int) -> list[ScalingRow]:
    """4 to 1024 chips that share a batch, as far as it can be divided among them."""
    rows = []
    for pod in scaling_slices(chip):
        if batch % pod.num_chips == 0:
            work = work_at(batch // pod.num_chips, measured)
            rows.append(ScalingRow(pod, work, roofline(work, pod)))
    return rows
