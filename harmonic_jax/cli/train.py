"""`train.py [CONFIG.py] [--field value ..]`: train, evaluate, report."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# The processor's client reads these when it starts.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax

from harmonic_jax.__main__ import run_script
from harmonic_jax.cli.command import EXIT_STOPPED, quoted, run_command
from harmonic_jax.cli.config_file import config_from_args
from harmonic_jax.cli.processes import (
    process_help,
    process_options,
    run_as_process,
    split_process_options,
)
from harmonic_jax.config import Config
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.sources import open_source
from harmonic_jax.metrics.coco import format_table
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.compilation import use_compilation_cache
from harmonic_jax.training.evaluation import write_report
from harmonic_jax.training.loop import train
from harmonic_jax.training.processes import is_primary, run_on_all
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.sharding import check_batch_sizes, data_mesh

DEFAULT_CONFIG = Path(__file__).parent.parent.parent / "configs" / "retinanet_r18_scenes.py"


def main(args: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 failed with a message, 3 stopped by a signal, 4 lost.

    The last is that of one of several processes, when another is gone or hangs.
    """
    return run_command(lambda: _main(sys.argv[1:] if args is None else args))


def _main(args: Sequence[str]) -> int:
    parsed, rest = split_process_options(args)
    options = process_options(parsed)
    config = config_from_args(
        rest,
        default=DEFAULT_CONFIG,
        prog="train.py",
        description="Train a detector, evaluate it, and write a report.\n\n" + process_help(),
    )
    use_both_cores()
    return run_as_process(options, lambda console: _run(config, console), needs_output=False)


def _run(config: Config, console: Terminal) -> int:
    use_compilation_cache()
    # Before the data are read or prepared, which may take an hour.
    check_batch_sizes(config, data_mesh())
    run_dir = RunFolder.of(config)
    # Process 0 first: it prepares the data where that has not been done.
    train_source, eval_source = run_on_all(
        lambda: (
            open_source(config.data, config.data.train_split),
            open_source(config.data, config.data.eval_split),
        ),
        primary_first=True,
    )
    with run_dir.opened(config) as is_continued:
        how = "continuing" if is_continued else "starting"
        console.print(f"{how} the run in {run_dir.path}")
        return _train_and_report(config, run_dir, train_source, eval_source, console)


def _train_and_report(
    config: Config,
    run_dir: RunFolder,
    train_source: DetectionSource,
    eval_source: DetectionSource,
    console: Terminal,
) -> int:
    if jax.process_count() > 1:
        console.print(f"{jax.process_count()} processes, {jax.device_count()} devices")
    for source in (train_source, eval_source):
        console.print(f"{source.name}: {len(source.records)} images")
        console.print(source.report.format())
    result = train(config, run_dir, train_source, eval_source)
    if result.evaluation is None:
        return EXIT_STOPPED
    if not is_primary():
        return 0
    try:  # first: the terminal may be gone
        files = write_report(
            run_dir.report,
            result.evaluation,
            eval_source,
            data=config.data,
            log=run_dir.log,
        )
    finally:
        console.print(format_table(result.evaluation.metrics))
    console.print("written:")
    for path in (run_dir.best, run_dir.checkpoints, run_dir.tensorboard, *files):
        console.print(f"  {path}")
    console.print(f"evaluate it again with: python -m harmonic_jax eval {quoted(run_dir.path)}")
    return 0


def use_both_cores() -> None:
    """With asynchronous dispatch, chained CPU steps run on one core of two.

    Harmless elsewhere; it must be set before the first array is made.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


if __name__ == "__main__":
    run_script("train")
