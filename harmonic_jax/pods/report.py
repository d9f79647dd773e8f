"""The findings, and as text: Markdown tables, which a terminal shows as well."""

import dataclasses
import itertools
from collections.abc import Sequence

from harmonic_jax.config import Config
from harmonic_jax.pods.advice import advice, gibibytes
from harmonic_jax.pods.chips import Slice
from harmonic_jax.pods.hlo import Collective
from harmonic_jax.pods.measure import Measurement, TooBig
from harmonic_jax.pods.roofline import (
    Roofline,
    ScalingRow,
    roofline,
    scale_fixed_batch,
    scale_fixed_share,
)


@dataclasses.dataclass(frozen=True)
class Report:
    """All that one run of the command found out."""

    config: Config
    pod: Slice
    num_classes: int
    fast: bool
    buckets: tuple[Measurement | TooBig, ...]
    other_share: Measurement | TooBig | None  # the first bucket with another number of images

    @property
    def fits(self) -> bool:
        return not any(isinstance(found, TooBig) for found in self.buckets)

    @property
    def slowest(self) -> Measurement | None:
        """The bucket with the longest step."""
        done = [found for found in self.buckets if isinstance(found, Measurement)]
        return max(done, key=lambda m: roofline(m.work, self.pod).step) if done else None


def format_report(report: Report) -> str:
    """What the command prints."""
    blocks = [_head(report)]
    for found in report.buckets:
        if isinstance(found, TooBig):
            blocks.append(_refusal(found, report))
        else:
            blocks.append(_bucket(found, report))
    fixed_share, fixed_batch = scaling_rows(report)
    if fixed_share:
        images = int(fixed_share[0].work.images)
        blocks += [
            f"Scaling, {images} images a chip (derived from the compiled programs):",
            _scaling_table(fixed_share),
            f"Scaling, {report.config.train.batch_size} images in all (derived):",
            _scaling_table(fixed_batch),
            _scaling_note(report),
        ]
    return "\n\n".join(blocks)


def scaling_rows(report: Report) -> tuple[list[ScalingRow], list[ScalingRow]]:
    """(with fixed images a chip, with a fixed batch); empty where nothing was compiled."""
    first = report.buckets[0]
    if not isinstance(first, Measurement):
        return [], []
    measured = [first.work]
    if isinstance(report.other_share, Measurement):
        measured.append(report.other_share.work)
    chip, batch = report.pod.chip, report.config.train.batch_size
    return scale_fixed_share(chip, measured), scale_fixed_batch(chip, measured, batch)


def _head(report: Report) -> str:
    config, pod, chip = report.config, report.pod, report.pod.chip
    parts = config.optim.accumulate
    split = f" in {parts} parts" if parts > 1 else ""
    return (
        f"{config.name} on {pod.name}: {pod.num_chips} chips, {config.train.batch_size} images a "
        f"step, {config.train.batch_size // pod.num_chips} a chip{split}; "
        f"{config.train.precision}, {config.optim.optimizer}, {report.num_classes} classes\n"
        f"{chip.name} as published: {chip.flops / 1e12:.0f} TFLOP/s bfloat16, "
        f"{gibibytes(chip.memory)} HBM at {chip.memory_rate / 1e9:.0f} GB/s, "
        f"{chip.link_rate / 1e9:.0f} GB/s a link and direction\n"
        + (
            "compiled without optimisations: a run has less traffic and is faster"
            if report.fast
            else "compiled with the optimisations of a run"
        )
    )


def _refusal(found: TooBig, report: Report) -> str:
    excess = found.needed - found.available
    lines = [
        f"bucket {found.bucket[0]} x {found.bucket[1]}: DOES NOT FIT. A chip would need "
        f"{gibibytes(found.needed)} and has {gibibytes(found.available)} for programs: "
        f"{gibibytes(excess)} too much. The state takes {gibibytes(found.state)} of it.",
        "what helps (estimates):",
    ]
    return "\n".join(lines + [f"  {line}" for line in advice(found, report.config, report.pod)])


def _bucket(found: Measurement, report: Report) -> str:
    chip, bound = report.pod.chip, roofline(found.work, report.pod)
    per_image = found.flops / found.images
    rows = [
        ("memory a chip", f"{gibibytes(found.total)} of {gibibytes(chip.memory)}"),
        ("  state and batch", gibibytes(found.arguments)),
        ("  temporaries", gibibytes(found.temporaries)),
        ("  program", gibibytes(found.code)),
        ("FLOPs a chip", f"{_giga(found.flops)} G ({_giga(per_image)} G an image)"),
        ("bytes accessed a chip", f"{_giga(found.accessed_bytes)} GB"),
        ("  from and to HBM", f"{_giga(found.memory_bytes)} GB"),
        ("gradient", f"{_giga(found.gradient_bytes)} GB in float32"),
        *_roofline_rows(bound),
        ("compile time", f"{found.seconds:.0f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    head = f"bucket {found.bucket[0]} x {found.bucket[1]}"
    table = [f"| {head.ljust(width)} | a step |", f"| {'-' * width} | --- |"]
    table += [f"| {name.ljust(width)} | {value} |" for name, value in rows]
    return "\n".join(table) + "\n\n" + _collectives_table(found.collectives)


def _roofline_rows(bound: Roofline) -> list[tuple[str, str]]:
    return [
        ("shortest compute", _milliseconds(bound.compute)),
        ("shortest HBM", _milliseconds(bound.memory)),
        ("shortest interconnect", _milliseconds(bound.interconnect)),
        ("roofline step", f"{_milliseconds(bound.step)} ({bound.bound})"),
        ("images/s a chip, at most", f"{bound.images_per_second_per_chip:.1f}"),
        ("images/s in all, at most", f"{bound.images_per_second:,.0f}"),
    ]


def _collectives_table(collectives: Sequence[Collective]) -> str:
    """Equal ones on one line."""
    lines = [
        "| collective | times a step | arrays | bytes | sent a chip | of |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    if not collectives:
        return "no collectives"
    key = dataclasses.astuple
    for _, group in itertools.groupby(sorted(collectives, key=key, reverse=True), key=key):
        same = list(group)
        one = same[0]
        times = sum(c.num_runs for c in same)
        lines.append(
            f"| {one.kind} ({', '.join(one.dtypes)}) | {times} | {one.num_arrays} | "
            f"{one.num_bytes:,} | {one.wire_bytes:,.0f} | {short_source(one.source)} |"
        )
    total = sum(c.num_bytes * c.num_runs for c in collectives)
    sent = sum(c.wire_bytes * c.num_runs for c in collectives)
    times = sum(c.num_runs for c in collectives)
    lines.append(f"| all | {times} | | {total:,} | {sent:,.0f} | |")
    return "\n".join(lines)


def short_source(source: str) -> str:
    """The last parts of a JAX operation's path, without what every path begins with.

    >>> short_source("jit(train_step)/shard_map/jvp(BatchNorm)/psum")
    'jvp(BatchNorm)/psum'
    """
    parts = [p for p in source.split("/") if p not in ("jit(train_step)", "shard_map")]
    return "/".join(parts[-2:])


def _scaling_table(rows: Sequence[ScalingRow]) -> str:
    lines = [
        "| chips | slice | images a chip | memory | compute | HBM | interconnect | step | "
        "images/s a chip | images/s |",
        "| --- " * 10 + "|",
    ]
    for row in rows:
        bound, work = row.roofline, row.work
        memory = gibibytes(work.peak_bytes) + ("" if row.fits else " (does not fit)")
        lines.append(
            f"| {row.pod.num_chips} | {row.pod.name} | {work.images:.0f} | {memory} | "
            f"{_milliseconds(bound.compute)} | {_milliseconds(bound.memory)} | "
            f"{_milliseconds(bound.interconnect)} | {_milliseconds(bound.step)} | "
            f"{bound.images_per_second_per_chip:.1f} | {bound.images_per_second:,.0f} |"
        )
    return "\n".join(lines)


def _scaling_note(report: Report) -> str:
    first = report.buckets[0]
    if isinstance(report.other_share, Measurement):
        basis = (
            f"Compiled were {first.images} and {report.other_share.images} images a chip; other "
            "numbers lie on the straight line through them."
        )
    else:
        basis = f"Compiled were {first.images} images a chip; other numbers are in proportion."
    return (
        f"{basis} The interconnect is computed from the compiled collectives for each slice. "
        "Times are bounds: nothing is faster, and latency is not counted."
    )


def _giga(value: float) -> str:
    return f"{value / 1e9:,.1f}" if value >= 1e10 else f"{value / 1e9:.3g}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"
