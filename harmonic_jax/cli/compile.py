"""`harmonic-jax compile CONFIG --topology v5e:16x16`."""

import dataclasses
import importlib.util
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from harmonic_jax.cli.command import command, print_and_save
from harmonic_jax.cli.options import ConfigFields
from harmonic_jax.config import Config, ConfigError
from harmonic_jax.files import check_writable
from harmonic_jax.pods.collectives import Collective, ring_all_reduce_bytes
from harmonic_jax.pods.compilation import (
    CHIPS,
    Compiled,
    Slice,
    TooBig,
    compile_for_slice,
    parse_slice,
)
from harmonic_jax.terminal import Terminal

# The release that was tried with JAX 0.10 and 0.12.
LIBTPU = "libtpu==0.0.50.*"
# Classes of the data sets that a TFDS name stands for; a folder's are not known from its config.
NUM_CLASSES = {"coco": 80, "voc": 20, "fashion_scenes": 10}
SCALING_CHIPS = (4, 16, 64, 256, 1024)


@dataclasses.dataclass(frozen=True)
class Options:
    """Compile a config's train step for a TPU slice, without one, and print what it needs there.

    Takes minutes and needs libtpu. Fields of the config are replaced as in `train`."""

    config: ConfigFields
    topology: str
    """The slice: v5e:16x16, v6e:8x8, v4:2x2x1, v5p:4x4x4."""
    num_slices: Annotated[int, "[1, 1000]"] = 1
    """Slices that train together."""
    batch_size: Annotated[int | None, "[1, 65536]"] = None
    """Images a step, instead of the config's."""
    num_classes: Annotated[int | None, "[1, 65536]"] = None
    """None: those of the config's data."""
    fast: bool = False
    """Compile without optimisations: several times faster."""
    json: Path | None = None
    """File to write the same to."""


@command(Options, "compile")
def main(options: Options) -> int:
    """Returns the exit status: 0 it fits, 1 failed or does not fit, with a message."""
    if options.json is not None:
        check_writable(options.json)
    config, pod = options.config, parse_slice(options.topology, num_slices=options.num_slices)
    config = _with_batch_size(config, pod, options.batch_size or config.train.batch_size)
    num_classes = options.num_classes or _num_classes(config)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "libtpu, which holds the TPU compiler, is not installed; install it with: "
            f"pip install '{LIBTPU}' (it needs no TPU)"
        )
    buckets = []
    for bucket in config.data.buckets:
        print(f"compiling for {pod.name}: {bucket[0]} x {bucket[1]}", file=sys.stderr, flush=True)
        found = compile_for_slice(config, pod, bucket, num_classes=num_classes, fast=options.fast)
        buckets.append(found)
    rows = scaling(buckets[0])
    lines = {i: advice(b, config, pod) for i, b in enumerate(buckets) if isinstance(b, TooBig)}
    kind = "without optimisations" if options.fast else "with the optimisations of a run"
    blocks = [f"{_headline(config, pod)}, {num_classes} classes; compiled {kind}"]
    for i, found in enumerate(buckets):
        if isinstance(found, TooBig):
            blocks.append(_excess(found, lines[i]))
        else:
            blocks += [_needs(found, pod), _collectives(found.collectives)]
    blocks += _scaling_blocks(rows)
    facts = {
        "config": dataclasses.asdict(config),
        "pod": dataclasses.asdict(pod),
        "num_chips": pod.num_chips,
        "num_classes": num_classes,
        "fast": options.fast,
        "fits": not lines,
        "buckets": [dataclasses.asdict(found) for found in buckets],
        "scaling": rows,
        "advice": list(lines.values()),
    }
    print_and_save(Terminal(), "\n\n".join(blocks), facts, options.json)
    return 1 if lines else 0


def _with_batch_size(config: Config, pod: Slice, size: int) -> Config:
    needed = pod.num_chips * config.optim.accumulate
    if size % needed:
        raise ConfigError(
            f"train.batch_size is {size}; on {pod.name} it must be a multiple of {needed}: "
            f"{pod.num_chips} chips x {config.optim.accumulate} accumulation parts "
            "(--batch-size N)"
        )
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=size))


def _num_classes(config: Config) -> int:
    name = config.data.name.split("/")[0]
    if config.data.format != "tfds" or name not in NUM_CLASSES:
        raise ConfigError(
            f"the classes of {config.data.root or config.data.name} are not known without "
            "reading it; give their number with --num-classes"
        )
    return NUM_CLASSES[name]


def _headline(config: Config, pod: Slice) -> str:
    batch_size, accumulate = config.train.batch_size, config.optim.accumulate
    parts = f" in {accumulate} parts" if accumulate > 1 else ""
    return (
        f"{config.name} on {pod.name}: {pod.num_chips} chips, {batch_size} images a step, "
        f"{batch_size // pod.num_chips} a chip{parts}; {config.train.precision}, "
        f"{config.optim.optimizer}"
    )


def scaling(found: Compiled | TooBig) -> list[dict[str, Any]]:
    """What a chip sends in slices of 4 to 1024 chips with as many images each, derived.

    What all-reduces combine are gradients and sums, whose size is the same on any number of
    chips; a ring of n sends 2 (n - 1) / n of it. None where the bucket does not fit.
    """
    if isinstance(found, TooBig):
        return []
    summed = [c for c in found.collectives if c.kind == "all-reduce"]
    reduced = sum(c.num_bytes * c.num_runs for c in summed)
    if not found.collectives:  # compiled for one chip; several would sum the gradient
        reduced = found.gradient_bytes
    others = sum(c.sent_bytes * c.num_runs for c in found.collectives if c not in summed)
    return [
        {
            "num_chips": chips,
            "batch_size": chips * found.images,
            "sent_bytes": ring_all_reduce_bytes(reduced, chips) + others,
        }
        for chips in SCALING_CHIPS
    ]


def _scaling_blocks(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    cells = [
        (row["num_chips"], f"{row['batch_size']:,}", f"{_giga(row['sent_bytes'])} GB")
        for row in rows
    ]
    return [
        "Scaling with as many images a chip, by the ring formula: memory and FLOPs stay.",
        _table(("chips", "images a step", "sent a chip"), cells),
    ]


def advice(refused: TooBig, config: Config, pod: Slice) -> list[str]:
    """One line a knob that would make the step fit, best first.

    Estimates: activations, which are all but the state, are taken to grow with the images that a
    chip works on at once, and with their pixels. The way to know is to compile again.
    """
    images, data = refused.images, config.data
    at_once = images // config.optim.accumulate
    room = refused.available - refused.state
    fitting = room * at_once / (refused.needed - refused.state)
    lines = []
    if fitting >= 1:
        parts = next(n for n in range(1, images + 1) if images % n == 0 and images // n <= fitting)
        share = images // parts
        lines += [
            f"--optim.accumulate {parts}: {share} images a chip at once; the update stays that of "
            f"{config.train.batch_size} images",
            f"--batch-size {share * pod.num_chips}: {share} images a chip",
            f"{pod.num_chips * parts} chips for the same batch: {share} images a chip",
        ]
    if config.train.precision == "float32":
        lines.append("--train.precision bfloat16: activations take half of the bytes")
    if room > 0:
        shrink = math.sqrt(min(1.0, fitting / (1 if fitting < 1 else at_once)))
        side = int(data.short_sides[-1] * shrink) // data.stride * data.stride
        longest = int(data.max_side * side / data.short_sides[-1])
        single = " (with one image a chip)" if fitting < 1 else ""
        lines.append(f"--data.short-sides {side} --data.max-side {longest}: smaller images{single}")
    if bigger := [name for name in CHIPS if memory_of(name) > refused.needed]:
        lines.append(f"a chip with more memory: {', '.join(bigger)}")
    return lines


def _excess(found: TooBig, lines: list[str]) -> str:
    return (
        f"bucket {found.bucket[0]} x {found.bucket[1]}: DOES NOT FIT. A chip would need "
        f"{_gib(found.needed)} and has {_gib(found.available)} for programs: "
        f"{_gib(found.needed - found.available)} too much. The state takes {_gib(found.state)} of "
        "it.\n" + "\n  ".join(["what helps (estimates):", *lines])
    )


def _needs(found: Compiled, pod: Slice) -> str:
    per_image = _giga(found.flops / found.images)
    rows = [
        ("memory a chip", f"{_gib(found.total)} of {_gib(memory_of(pod.chip))}"),
        ("- state and batch", _gib(found.arguments)),
        ("- temporaries", _gib(found.temporaries)),
        ("- program", _gib(found.code)),
        ("FLOPs a chip", f"{_giga(found.flops)} G ({per_image} G an image)"),
        ("gradient", f"{_giga(found.gradient_bytes)} GB in float32"),
        ("compile time", f"{found.seconds:.0f} s"),
    ]
    return _table((f"bucket {found.bucket[0]} x {found.bucket[1]}", "a step"), rows)


def _collectives(collectives: Sequence[Collective]) -> str:
    """Equal ones on one line."""
    if not collectives:
        return "no collectives"
    rows: list[tuple[object, ...]] = []
    for one, same in itertools.groupby(sorted(collectives, key=dataclasses.astuple, reverse=True)):
        times = sum(c.num_runs for c in same)
        # The last parts of a JAX operation's path, without what every path begins with.
        parts = [p for p in one.source.split("/") if p not in ("jit(train_step)", "shard_map")]
        kind = f"{one.kind} ({', '.join(one.dtypes)})"
        sizes = (f"{one.num_bytes:,}", f"{one.sent_bytes:,.0f}")
        rows.append((kind, times, one.num_arrays, *sizes, "/".join(parts[-2:])))
    total = sum(c.num_bytes * c.num_runs for c in collectives)
    sent = sum(c.sent_bytes * c.num_runs for c in collectives)
    times = sum(c.num_runs for c in collectives)
    rows.append(("all", times, "", f"{total:,}", f"{sent:,.0f}", ""))
    return _table(("collective", "times a step", "arrays", "bytes", "sent a chip", "of"), rows)


def _table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def memory_of(chip: str) -> int:
    """Bytes of HBM."""
    return CHIPS[chip][0] * 2**30


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _giga(value: float) -> str:
    return f"{value / 1e9:,.1f}" if value >= 1e10 else f"{value / 1e9:.3g}"
