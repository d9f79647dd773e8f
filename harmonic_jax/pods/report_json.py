"""The findings as plain JSON values."""

import dataclasses
from typing import Any

from harmonic_jax.pods.advice import advice
from harmonic_jax.pods.measure import Measurement, TooBig
from harmonic_jax.pods.report import Report, scaling_rows
from harmonic_jax.pods.roofline import Roofline, ScalingRow, roofline


def report_to_json(report: Report) -> dict[str, Any]:
    """What `format_report` says, in plain values; times in seconds, bytes, of one chip."""
    rows = scaling_rows(report)
    return {
        "config": report.config.name,
        "batch_size": report.config.train.batch_size,
        "accumulate": report.config.optim.accumulate,
        "precision": report.config.train.precision,
        "optimizer": report.config.optim.optimizer,
        "num_classes": report.num_classes,
        "topology": report.pod.topology,
        "num_slices": report.pod.num_slices,
        "num_chips": report.pod.num_chips,
        "chip": dataclasses.asdict(report.pod.chip),
        "optimized": not report.fast,
        "fits": report.fits,
        "buckets": [_found_to_json(found, report) for found in report.buckets],
        "other_share": report.other_share and dataclasses.asdict(report.other_share),
        "scaling_fixed_share": [_row_to_json(row) for row in rows[0]],
        "scaling_fixed_batch": [_row_to_json(row) for row in rows[1]],
    }


def _found_to_json(found: Measurement | TooBig, report: Report) -> dict[str, Any]:
    values = dataclasses.asdict(found)
    if isinstance(found, TooBig):
        return values | {"fits": False, "advice": advice(found, report.config, report.pod)}
    for row, collective in zip(values["collectives"], found.collectives, strict=True):
        row["wire_bytes"] = collective.wire_bytes
    return values | {"fits": True, "roofline": _roofline_to_json(roofline(found.work, report.pod))}


def _roofline_to_json(bound: Roofline) -> dict[str, Any]:
    return dataclasses.asdict(bound) | {
        "step": bound.step,
        "bound": bound.bound,
        "images_per_second": bound.images_per_second,
        "images_per_second_per_chip": bound.images_per_second_per_chip,
    }


def _row_to_json(row: ScalingRow) -> dict[str, Any]:
    return {
        "slice": row.pod.name,
        "num_chips": row.pod.num_chips,
        "fits": row.fits,
        "work": dataclasses.asdict(row.work),
        "roofline": _roofline_to_json(row.roofline),
    }
