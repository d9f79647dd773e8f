"""What an evaluation leaves: numbers on the terminal and in files, and the consistency report."""

import argparse
import json
from pathlib import Path

from harmonic_jax.cli.consistency import make_consistency
from harmonic_jax.cli.raw_boxes import RawBoxes
from harmonic_jax.files import check_writable, make_folder, write_text
from harmonic_jax.metrics.coco import format_table
from harmonic_jax.metrics.consistency.report import format_overall
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from harmonic_jax.report import Images
from harmonic_jax.terminal import Terminal


def check_outputs(args: argparse.Namespace) -> None:
    """Tries what the options name to be written, before the evaluation.

    Raises:
      OSError: a file or folder cannot be.
    """
    if args.json is not None:
        check_writable(args.json)
    if args.report is not None:
        make_folder(args.report)


def print_and_save(args: argparse.Namespace, console: Terminal, metrics: dict[str, float]) -> None:
    """Writes the numbers to the file of --json, where there is one, and prints them."""
    try:
        if args.json is not None:
            write_text(args.json, json.dumps(metrics, indent=2) + "\n")
    finally:
        console.print(format_table(metrics))
    if args.json is not None:
        console.print(f"written: {args.json}")


def write_agreement(
    args: argparse.Namespace,
    console: Terminal,
    truth: GroundTruthTable,
    found: DetectionTable,
    raw: RawBoxes | DetectionTable | None,
    images: Images,
    title: str,
) -> None:
    """Writes how scores and boxes agree to the folder of --report, and prints the overall part."""
    report, files = make_consistency(
        args.report, truth, found, raw, resamples=args.resamples, images=images, title=title
    )
    console.print(f"\n{format_overall(report)}")
    print_files(console, files)


def print_files(console: Terminal, files: list[Path]) -> None:
    for path in files:
        console.print(f"written: {path}")
