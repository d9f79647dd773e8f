"""What a person reads after an evaluation: tables, results in COCO format, pictures."""

import json
from pathlib import Path

import numpy as np

from harmonic_jax.config import DataConfig
from harmonic_jax.data.decode import ImageError, decode_record
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.files import write_text
from harmonic_jax.metrics.coco import format_table
from harmonic_jax.metrics.files import save_coco_results
from harmonic_jax.report.boxes import LabelledBoxes, detection_grid, save_png
from harmonic_jax.report.plots import plot_loss_curves
from harmonic_jax.terminal import printable
from harmonic_jax.training.evaluation import Evaluation
from harmonic_jax.training.log import read_metrics

NUM_PICTURES = 12
SHOWN_SCORE = 0.3


def write_results(
    folder: Path,
    evaluation: Evaluation,
    source: DetectionSource,
    *,
    data: DataConfig,
    log: Path | None = None,
) -> list[Path]:
    """Writes metrics.json, metrics.txt, detections.json (COCO results), images.txt (what was odd
    in images as they were loaded), detections.png and curves.png.

    The folder is made if absent; files of an earlier report are replaced. `data` caps the pixels of
    a picture; without `log`, the run's metrics.jsonl, there are no curves.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "raw_boxes.npz").unlink(missing_ok=True)  # of detections that are replaced
    files = [
        folder / name for name in ("metrics.json", "metrics.txt", "detections.json", "images.txt")
    ]
    write_text(files[0], json.dumps(evaluation.metrics, indent=2) + "\n")
    write_text(files[1], printable(format_table(evaluation.metrics)) + "\n")
    original_ids = evaluation.ground_truth.original_ids
    save_coco_results(files[2], evaluation.detections, source.category_ids, original_ids)
    write_text(files[3], f"{evaluation.loaded.format()}\n{evaluation.warning}".strip() + "\n")
    files.append(folder / "detections.png")  # pictures last: what fails there costs no numbers
    save_png(files[-1], prediction_grid(evaluation, source, max_pixels=data.max_pixels))
    if log is not None and log.exists():
        files.append(folder / "curves.png")
        plot_loss_curves(files[-1], read_metrics(log))
    return files


def prediction_grid(
    evaluation: Evaluation, source: DetectionSource, *, max_pixels: int
) -> np.ndarray:
    """Pictures from all over the split with true and predicted objects, uint8 RGB [h, w, 3].

    Images that cannot be decoded are passed over. Predictions under a score of 0.3 are not drawn.
    """
    count = min(NUM_PICTURES, len(source.records))
    images, truths, predictions = [], [], []
    for index in np.unique(np.linspace(0, len(source.records) - 1, count).astype(int)):
        record = source.records[index]
        try:
            image = decode_record(source, int(index), max_pixels=max_pixels).image
        except (ImageError, OSError):
            continue
        images.append(image)
        truths.append(LabelledBoxes(record.boxes, record.labels, masks=record.masks))
        predictions.append(_predicted(evaluation, record.image_id))
    return detection_grid(images, truths, predictions, source.class_names)


def _predicted(evaluation: Evaluation, image_id: int) -> LabelledBoxes:
    table = evaluation.detections
    shown = (table.image_id == image_id) & (table.scores >= SHOWN_SCORE)
    masks = None if table.masks is None else table.masks.take(shown)
    return LabelledBoxes(table.boxes[shown], table.labels[shown], table.scores[shown], masks)
