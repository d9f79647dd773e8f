"""`harmonic-jax train CONFIG [--field VALUE ..]`: train, evaluate, report."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Annotated

# The processor's client reads this when it starts.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax

from harmonic_jax.cli.command import (
    EXIT_STOPPED,
    EXIT_USAGE,
    FAILURES,
    command,
    quoted,
    run_as_process,
    run_command,
)
from harmonic_jax.cli.configs import format_configs
from harmonic_jax.cli.doctor import network_findings
from harmonic_jax.cli.options import FLAT, ConfigFields
from harmonic_jax.config import Config
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.sources import open_source
from harmonic_jax.metrics.coco import format_table
from harmonic_jax.terminal import Terminal, counted
from harmonic_jax.training.compilation import use_compilation_cache
from harmonic_jax.training.loop import train
from harmonic_jax.training.processes import ProcessOptions, is_primary, run_on_all
from harmonic_jax.training.results import write_results
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.sharding import check_batch_size, data_mesh


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a detector, evaluate it, and write a report.

    CONFIG is a name that `harmonic-jax train` lists, or a Python file. On several hosts the same
    command runs on each (docs/pods.md)."""

    config: ConfigFields
    processes: Annotated[ProcessOptions, FLAT] = ProcessOptions()


def main(args: Sequence[str]) -> int:
    """Returns the exit status; without a config, lists those there are."""
    return _train(args) if args else run_command(_list)


def _list() -> int:
    Terminal().print(f"usage: harmonic-jax train CONFIG ..\n\n{format_configs()}")
    return EXIT_USAGE


@command(Options, "train", failures=FAILURES)
def _train(options: Options) -> int:
    return run_as_process(
        options.processes, lambda console: _run(options.config, console), needs_output=False
    )


def _run(config: Config, console: Terminal) -> int:
    use_compilation_cache()
    # Before the data are read or prepared, which may take an hour.
    check_batch_size(config, data_mesh())
    run_folder = RunFolder.of(config)
    # Process 0 first: it prepares the data where that has not been done.
    train_source, eval_source = run_on_all(
        lambda: (
            open_source(config.data, config.data.train_split),
            open_source(config.data, config.data.eval_split),
        ),
        primary_first=True,
    )
    with run_folder.opened(config) as is_continued:
        how = "continuing" if is_continued else "starting"
        console.print(f"{how} the run in {run_folder.path}")
        return _train_and_report(config, run_folder, train_source, eval_source, console)


def _train_and_report(
    config: Config,
    run_folder: RunFolder,
    train_source: DetectionSource,
    eval_source: DetectionSource,
    console: Terminal,
) -> int:
    if jax.process_count() > 1:
        console.print(f"{jax.process_count()} processes, {jax.device_count()} devices")
    for source in (train_source, eval_source):
        console.print(f"{source.name}: {counted(len(source.records), 'image')}")
        console.print(source.report.format())
        for doubt in source.report.doubts:
            console.print(f"{source.name}: {doubt}")
    for line in network_findings(train_source, config):
        console.print(line)
    result = train(config, run_folder, train_source, eval_source)
    if result.evaluation is None:
        return EXIT_STOPPED
    if not is_primary():
        return 0
    place, log = run_folder.report, run_folder.log
    try:  # first: the terminal may be gone
        files = write_results(place, result.evaluation, eval_source, data=config.data, log=log)
    finally:
        console.print(format_table(result.evaluation.metrics))
    console.print("written:")
    for path in (run_folder.best, run_folder.checkpoints, run_folder.tensorboard, *files):
        console.print(f"  {path}")
    console.print(f"evaluate it again with: harmonic-jax eval {quoted(run_folder.path)}")
    return 0
