"""`python -m harmonic_jax compile CONFIG.py --topology v5e:16x16`."""

import argparse
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from harmonic_jax.__main__ import run_script
from harmonic_jax.checks import check_count
from harmonic_jax.cli.arguments import Parser
from harmonic_jax.cli.command import FAILURES, run_command
from harmonic_jax.cli.config_file import config_from_args
from harmonic_jax.cli.train import DEFAULT_CONFIG
from harmonic_jax.config import Config, ConfigError
from harmonic_jax.config.training import BATCH_SIZES
from harmonic_jax.files import check_writable, write_text
from harmonic_jax.pods.chips import Slice, TopologyError, parse_slice
from harmonic_jax.pods.measure import Measurement, TooBig
from harmonic_jax.pods.report import Report, format_report
from harmonic_jax.pods.report_json import report_to_json
from harmonic_jax.pods.worker import CompileError, compile_remotely

PROG = "python -m harmonic_jax compile"
# The release that was tried with JAX 0.10 and 0.12.
LIBTPU = "libtpu==0.0.50.*"
# Classes of the data sets that a TFDS name stands for; a folder's are not known from its config.
NUM_CLASSES = {"coco": 80, "voc": 20, "fashion_scenes": 10}


class MissingCompilerError(RuntimeError):
    """libtpu is not installed."""


def main(args: Sequence[str]) -> int:
    """Returns the exit status: 0 it fits, 1 failed or does not fit, with a message."""
    failures = (*FAILURES, TopologyError, CompileError, MissingCompilerError)
    return run_command(lambda: _main(args), failures=failures)


def _main(args: Sequence[str]) -> int:
    options, rest = _parser().parse_known_args(args)
    if options.json is not None:
        check_writable(options.json)
    check_count("--num-slices", options.num_slices, "[1, 1000]")
    for option, value in (
        ("--batch-size", options.batch_size),
        ("--num-classes", options.num_classes),
    ):
        if value is not None:
            check_count(option, value, BATCH_SIZES)
    pod = dataclasses.replace(parse_slice(options.topology), num_slices=options.num_slices)
    config = config_from_args(
        rest, default=DEFAULT_CONFIG, prog=PROG, description="Fields of the config."
    )
    config = _with_batch_size(config, pod, options.batch_size)
    num_classes = options.num_classes or _num_classes(config)
    check_compiler()
    report = compile_report(
        config, pod, num_classes=num_classes, fast=options.fast, scaling=options.scaling
    )
    try:
        if options.json is not None:
            write_text(options.json, json.dumps(report_to_json(report), indent=2) + "\n")
    finally:
        print(format_report(report))
    if options.json is not None:
        print(f"\nwritten: {options.json}")
    return 0 if report.fits else 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=PROG,
        usage=f"{PROG} CONFIG.py --topology CHIP:AxB [options] [--field.name VALUE ..]",
        description="Compile a config's train step for a TPU slice, without one, and print what "
        "it needs there and how fast it can be at most. Takes minutes and needs libtpu.",
        epilog="Fields of the config are replaced as in train.py, which lists them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--topology", required=True, help="the slice: v5e:16x16, v6e:8x8, v4:2x2x1, v5p:4x4x4"
    )
    parser.add_argument(
        "--num-slices", type=int, default=1, help="slices that train together (default: 1)"
    )
    parser.add_argument("--batch-size", type=int, help="images a step, instead of the config's")
    parser.add_argument("--num-classes", type=int, help="default: those of the config's data")
    parser.add_argument(
        "--fast",
        action="store_true",
        help="compile without optimisations: several times faster; traffic is far overestimated",
    )
    parser.add_argument(
        "--no-scaling",
        dest="scaling",
        action="store_false",
        help="compile no second number of images a chip for the scaling tables",
    )
    parser.add_argument("--json", type=Path, help="file to write the same to")
    return parser


def check_compiler() -> None:
    """
    Raises:
      MissingCompilerError: says what to install.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise MissingCompilerError(
            "libtpu, which holds the TPU compiler, is not installed; install it with: "
            f"pip install '{LIBTPU}' (it needs no TPU)"
        )


def compile_report(
    config: Config, pod: Slice, *, num_classes: int, fast: bool, scaling: bool
) -> Report:
    """Compiles every bucket, and the first with another number of images a chip."""

    def compiled(config: Config, bucket: tuple[int, int]) -> Measurement | TooBig:
        images = config.train.batch_size // pod.num_chips
        print(
            f"compiling for {pod.name}: {bucket[0]} x {bucket[1]}, {images} images a chip",
            file=sys.stderr,
            flush=True,
        )
        return compile_remotely(config, pod, bucket, num_classes=num_classes, fast=fast)

    buckets = tuple(compiled(config, bucket) for bucket in config.data.buckets)
    other = None
    if scaling and isinstance(buckets[0], Measurement):
        other = compiled(_with_other_share(config, pod), config.data.buckets[0])
    return Report(config, pod, num_classes, fast, buckets, other)


def _with_other_share(config: Config, pod: Slice) -> Config:
    """Half as many images a chip, or twice as many where half is not possible."""
    whole = pod.num_chips * config.optim.accumulate
    images = config.train.batch_size // whole
    size = whole * (images // 2 if images > 1 else 2)
    return _with_batch_size(config, pod, size)


def _with_batch_size(config: Config, pod: Slice, batch_size: int | None) -> Config:
    size = batch_size if batch_size is not None else config.train.batch_size
    needed = pod.num_chips * config.optim.accumulate
    if size % needed:
        raise ConfigError(
            f"train.batch_size is {size}; on {pod.name} it must be a multiple of {needed}: "
            f"{pod.num_chips} chips x {config.optim.accumulate} accumulation parts "
            "(--batch-size N)"
        )
    train = dataclasses.replace(config.train, batch_size=size)
    return dataclasses.replace(config, train=train)


def _num_classes(config: Config) -> int:
    name = config.data.name.split("/")[0]
    if config.data.format != "tfds" or name not in NUM_CLASSES:
        raise ConfigError(
            f"the classes of {config.data.root or config.data.name} are not known without "
            "reading it; give their number with --num-classes"
        )
    return NUM_CLASSES[name]


if __name__ == "__main__":
    run_script("compile")
