"""The consistency report of `eval.py`, written to a folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from harmonic_jax.cli.raw_boxes import MOST_RAW_BOXES, RawBoxes
from harmonic_jax.files import write_text
from harmonic_jax.metrics.consistency.bootstrap import RESAMPLES
from harmonic_jax.metrics.consistency.report import format_report, report_of
from harmonic_jax.metrics.consistency.sampling import sample_metrics
from harmonic_jax.metrics.consistency.study import Study, study
from harmonic_jax.metrics.raw_boxes import save_raw
from harmonic_jax.metrics.results_json import save_coco_annotations, save_coco_results
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable
from harmonic_jax.report import Images, write_page
from harmonic_jax.terminal import printable

NO_RAW_BOXES = "boxes before NMS were not given: what NMS loses is not known"


def make_consistency(
    folder: Path,
    truth: GroundTruthTable,
    found: DetectionTable,
    raw: RawBoxes | DetectionTable | None,
    *,
    notes: tuple[str, ...] = (),
    resamples: int = RESAMPLES,
    images: Images | None = None,
    title: str = "Consistency report",
) -> tuple[dict[str, Any], list[Path]]:
    """Computes the report and writes it as files and as a page; see `write_consistency`.

    Args:
      folder: made if absent; files of an earlier report are replaced.
      truth: the annotated images.
      found: the detections.
      raw: the boxes before NMS; a table is taken to be complete.
      notes: sentences for the reader.
      resamples: of the images, for the intervals.
      images: for the page's pictures.
      title: of the page.

    Returns:
      The report and the files written.
    """
    boxes = raw.boxes if isinstance(raw, RawBoxes) else raw
    if boxes is None:
        notes += (NO_RAW_BOXES,)
    if isinstance(raw, RawBoxes) and raw.num_full:
        notes += (
            f"of {raw.num_full} images only the best {MOST_RAW_BOXES} boxes before NMS were kept: "
            "what NMS loses there may be more",
        )
    case = study(truth, found, boxes)
    samples = sample_metrics(case, resamples=resamples, seed=0)
    report = report_of(case, samples, resamples=resamples, notes=notes)
    files = write_consistency(folder, report, case)
    return report, files + write_page(folder, case, report, images, title=title)


def write_consistency(folder: Path, report: dict[str, Any], case: Study) -> list[Path]:
    """Writes consistency.json and consistency.txt, and what `compare` reads without the data set:
    annotations.json and detections.json in COCO format (boxes only), raw_boxes.npz where known.

    Args:
      folder: made if absent; files of an earlier report are replaced.
      report: as `metrics.consistency.report` makes it.
      case: what it was made of.

    Returns:
      The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = ("consistency.json", "consistency.txt", "annotations.json", "detections.json")
    files = [folder / name for name in names]
    write_text(files[0], json.dumps(report, indent=2, allow_nan=False) + "\n")
    write_text(files[1], printable(format_report(report)) + "\n")
    truth = dataclasses.replace(case.truth, masks=None)
    found = dataclasses.replace(case.found, masks=None)
    save_coco_annotations(files[2], truth)
    save_coco_results(files[3], found, truth.category_ids, truth.original_ids)
    raw = folder / "raw_boxes.npz"
    raw.unlink(missing_ok=True)
    if case.raw is not None:
        save_raw(raw, case.raw, case.truth.category_ids)
        files.append(raw)
    return files
