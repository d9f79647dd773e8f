"""COCO's metrics of boxes and masks over tables: the numbers of pycocotools, to the last bit.

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; the evaluation is
defined by the behaviour of pycocotools.cocoeval.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from harmonic_jax.metrics.matching import (
    IOU_THRESHOLDS,
    MOST_BITS,
    IouType,
    Matching,
    find_overlaps,
    match_detections,
)
from harmonic_jax.metrics.params import COCO_PARAMS, CocoParams
from harmonic_jax.metrics.tables import DetectionTable, GroundTruthTable

RECALLS = np.linspace(0.0, 1.0, 101)
_AT_ONCE = 20_000  # weights of detections: curves that are computed together
AT_75 = int(np.flatnonzero(IOU_THRESHOLDS == 0.75)[0])


def coco_metrics(
    ground_truth: GroundTruthTable,
    detections: DetectionTable,
    *,
    iou_type: IouType = "bbox",
    params: CocoParams = COCO_PARAMS,
) -> dict[str, float]:
    """Average precision and recall as COCO defines them, with its settings or others.

    AP is the mean, over classes and the IoU thresholds .5, .55, .., .95, of precision interpolated
    at the recalls 0, .01, .., 1. AR is the mean over the same of the highest recall.

    Args:
      ground_truth: The annotated images; crowd regions and difficult objects are ignored.
      detections: Of these images and classes. The best 100 of each image and class count.
        Of a federated ground truth, as LVIS's, the best 300 of each image; one of a class that its
        image was not or not wholly searched for is no false positive.
      iou_type: What overlaps: "bbox", the boxes, or "segm", the masks. An object is small, medium
        or large by its annotated area either way, a detection by that of its box or its mask.
      params: Thresholds, area ranges, limits on detections, and subsets of classes and images.

    Returns:
      AP, AP50, AP75, AP_small, AP_medium, AP_large; AR_1, AR_10, AR_100 (detections of each image
      and class), AR_small, AR_medium, AR_large; then AP/NAME and AP50/NAME of each class. In
      [0, 1], or -1 where there is no object to find, as in pycocotools. The names follow `params`:
      AP50 is there where .5 is among the thresholds, AR_300 where 300 is among the limits. Of a
      federated ground truth AP_r, AP_c and AP_f too: of rare, common and frequent classes.

    Raises:
      ValueError: A detection of an image or a class that the ground truth does not have; "segm"
        without masks, or with one that is not of its image's size.
      ConfigError: A class or an image of `params` is not in the ground truth.

    Example:
      >>> truth = GroundTruthTable(
      ...     image_ids=[1], image_id=[1], boxes=[[0, 0, 10, 10]], labels=[0], is_crowd=[False],
      ...     is_difficult=[False], area=[100.0], class_names=("cat",), category_ids=(17,),
      ... )
      >>> found = DetectionTable(image_id=[1], boxes=[[0, 0, 10, 8]], scores=[0.9], labels=[0])
      >>> metrics = coco_metrics(truth, found)  # an IoU of 0.8 passes 7 of the 10 thresholds
      >>> [round(metrics[name], 3) for name in ("AP/cat", "AP50", "AP_large")]
      [0.7, 1.0, -1.0]
    """
    truth, found = params.select(ground_truth, detections)
    limits = params.limits(truth)
    matchings = coco_matchings(truth, found, iou_type, params)
    curves = [recall_precision_curves(part, limits) for part in matchings]
    precision, recall = map(np.concatenate, zip(*curves, strict=True))
    at = {f"AP{100 * t:.0f}": i for i, t in enumerate(params.iou_thresholds) if t in (0.5, 0.75)}
    sizes = list(enumerate(params.ranges))[1:]
    metrics = {"AP": _mean(precision[:, :, :, 0])}
    metrics |= {key: _mean(precision[row, :, :, 0]) for key, row in at.items()}
    metrics |= {f"AP_{size}": _mean(precision[:, :, :, a]) for a, size in sizes}
    groups = np.array(truth.federation.frequencies if truth.federation else ())
    for group in "rcf" if groups.size else "":
        metrics[f"AP_{group}"] = _mean(precision[:, :, groups == group, 0])
    for m, limit in enumerate(limits):
        metrics[f"AR_{limit}"] = _mean(recall[:, :, 0, m])
    metrics |= {f"AR_{size}": _mean(recall[:, :, a, -1]) for a, size in sizes}
    for k, name in enumerate(truth.class_names):
        if params.classes is None or name in params.classes:
            metrics[f"AP/{name}"] = _mean(precision[:, :, k, 0])
            if "AP50" in at:
                metrics[f"AP50/{name}"] = _mean(precision[at["AP50"], :, k, 0])
    return metrics


def coco_matchings(
    truth: GroundTruthTable, found: DetectionTable, iou_type: IouType, params: CocoParams
) -> list[Matching]:
    """Matches at a few thresholds each, looking at no pairs but those that can match."""
    thresholds = np.minimum(params.iou_thresholds, 1 - 1e-10)  # as pycocotools has it
    limit, least, areas = params.limits(truth)[-1], float(thresholds[0]), params.ranges.values()
    pairs = find_overlaps(truth, found, own_class=True, limit=limit, least=least, iou_type=iou_type)
    step = MOST_BITS // len(areas)
    parts = [thresholds[start : start + step] for start in range(0, len(thresholds), step)]
    return [match_detections(pairs, part, areas) for part in parts]


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else -1.0


def recall_precision_curves(
    matching: Matching, limits: Sequence[int] = COCO_PARAMS.max_detections
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [thresholds, recalls, k, areas] and recall [thresholds, k, areas, limits]."""
    overlaps, truth, found = matching.overlaps, matching.overlaps.truth, matching.overlaps.found
    areas, thresholds = matching.is_counted.shape[1], matching.num_thresholds
    num_classes = len(truth.class_names)
    precision = np.full((thresholds, len(RECALLS), num_classes, areas), -1.0)
    recall = np.full((thresholds, num_classes, areas, len(limits)), -1.0)
    bounds = np.searchsorted(found.labels[overlaps.order], np.arange(num_classes + 1))
    for k in range(num_classes):
        rows = overlaps.order[bounds[k] : bounds[k + 1]]
        objects = matching.is_counted[truth.labels == k].sum(axis=0)
        once = np.ones((1, len(rows)), np.int64)
        for a in np.flatnonzero(objects).tolist():
            hits, matched, is_true = hits_of(matching, rows, a)
            for m, limit in enumerate(limits):
                reached = is_true[overlaps.rank[rows[hits]] < limit].sum(axis=0)
                recall[:, k, a, m] = reached / objects[a]
            is_sized = matching.is_sized[rows, a]
            curves = precision_curves(once, is_sized, hits, matched, is_true, objects[a : a + 1])
            precision[:, :, k, a] = curves[:, 0]
    return precision, recall


def hits_of(
    matching: Matching, rows: np.ndarray, area: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of some detections those that match anything in an area range.

    Returns:
      Their places [h] in `rows`; at which thresholds they match, and which of that makes them true
      positives, bool [h, thresholds] both.
    """
    of_area = ((1 << matching.num_thresholds) - 1) << area * matching.num_thresholds
    hits = np.flatnonzero(matching.matched[rows] & of_area)
    matched = matching.unpack(matching.matched[rows[hits]], area)
    return hits, matched, matched & ~matching.unpack(matching.ignored[rows[hits]], area)


def precision_curves(
    counts: np.ndarray,
    is_sized: np.ndarray,
    hits: np.ndarray,
    matched: np.ndarray,
    is_true: np.ndarray,
    objects: np.ndarray,
) -> np.ndarray:
    """Precision of one class, interpolated at the 101 recalls: the best there or at a higher one.

    A curve bends only where a true positive is, so of all other detections only the number before
    each true positive is needed.

    Args:
      counts: int [b, n], how often each of n detections counts, best first.
      is_sized: bool [n]; a false positive is of the right size and unmatched.
      hits: int [h], the detections that match at some threshold.
      matched, is_true: bool [h, t], where they match, and where that makes a true positive.
      objects: int [b], how many there are to find, >= 1.

    Returns:
      float64 [t, b, 101]; 0 where a recall is not reached.
    """
    needed = needed_positives(objects)
    sized, counts = np.cumsum(counts * is_sized, axis=1)[:, hits], counts[:, hits]
    curves = np.zeros((matched.shape[1], *needed.shape))
    step = max(1, _AT_ONCE // max(counts.size, 1))
    for part in (slice(t, t + step) for t in range(0, len(curves), step)):
        here = is_true[:, part].any(axis=1)
        if not here.any():
            continue
        # Of thresholds, resamples and detections, [t, b, h].
        true = np.cumsum(counts[:, here] * is_true[here, part].T[:, None], axis=-1)
        matched_sized = (matched[:, part] & is_sized[hits, None]).T[:, None]
        false = sized[:, here] - np.cumsum(counts * matched_sized, axis=-1)[..., here]
        precision = true / (false + true + np.spacing(1))  # the last term as pycocotools has it
        best = np.zeros((*true.shape[:2], true.shape[2] + 1))  # at the end what is never reached
        best[..., -2::-1] = np.maximum.accumulate(precision[..., ::-1], axis=-1)
        # One search for all rows of counts: each has a stretch of the number line for itself.
        stride = int(max(true.max(), needed.max())) + 1
        row = np.arange(best[..., 0].size).reshape(*best.shape[:2], 1)
        place = np.searchsorted((true + row * stride).ravel(), needed + row * stride)
        curves[part] = best.ravel()[place + row]
    return curves


def needed_positives(objects: np.ndarray) -> np.ndarray:
    """The least number of true positives m >= 1 with m / n >= r, for the recalls r, int64 [b, 101].

    Args:
      objects: int64 [b], n.

    Example:
      >>> needed_positives(np.array([10]))[0, [0, 1, 30, 31, 100]].tolist()
      [1, 1, 3, 4, 10]
    """
    n = np.maximum(objects, 1)[:, None]
    guess = np.ceil(RECALLS * n).astype(np.int64)
    # The product is rounded; the comparison that counts is that of the quotients.
    guess -= (guess - 1) / n >= RECALLS
    guess += guess / n < RECALLS
    return np.maximum(guess, 1)


def mask_metrics(
    ground_truth: GroundTruthTable, detections: DetectionTable, params: CocoParams = COCO_PARAMS
) -> dict[str, float]:
    """`coco_metrics` of the masks, to stand beside those of the boxes: mask_AP, mask_AP50, .."""
    metrics = coco_metrics(ground_truth, detections, iou_type="segm", params=params)
    return {_MASK + name: value for name, value in metrics.items()}


_MASK = "mask_"


def format_table(metrics: dict[str, Any]) -> str:
    """The numbers of all classes, and each class's AP, as text; a dash where nothing is to find.

    Args:
      metrics: As `coco_metrics` returns them; `VOC_mAP` and `VOC07_mAP` are shown where present,
        and those of masks, as `mask_metrics` names them, in a second table, or in the only one;
        below them the first row of "at_score", a `class_table`, where that is there.
    """
    if "at_score" in metrics:
        rest = {key: value for key, value in metrics.items() if key != "at_score"}
        pooled = ((k, "-" if v is None else v) for k, v in metrics["at_score"][0].items())
        told = (f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in pooled)
        return f"{format_table(rest)}\n\n{', '.join(told)}"
    of_masks = {k.removeprefix(_MASK): v for k, v in metrics.items() if k.startswith(_MASK)}
    if not of_masks:
        return _format_one(metrics)
    if len(of_masks) == len(metrics):
        return f"masks\n{_format_one(of_masks)}"
    return f"boxes\n{_format_one(metrics)}\n\nmasks\n{_format_one(of_masks)}"


def _format_one(metrics: dict[str, float]) -> str:
    from harmonic_jax.terminal import column_width, padded  # of rich, which metrics do without

    classes = [key.removeprefix("AP/") for key in metrics if key.startswith("AP/")]
    width = column_width(classes, heading="class") + 2
    lines = []
    for kind, of_number in (("AP", "IoU ."), ("AR", "best ")):
        row = {k: v for k, v in metrics.items() if re.fullmatch(rf"{kind}(\d*|_[^/]+)", k)}
        names = [key[2:].removeprefix("_") or "all" for key in row]
        heads = [of_number + name if name.isdecimal() else name for name in names]
        wide = max([9, *(len(head) + 1 for head in heads)])
        lines.append(" " * width + "".join(f"{head:>{wide}}" for head in heads))
        lines.append(f"{kind:{width}}" + "".join(_cell(value, wide) for value in row.values()))
    if "VOC_mAP" in metrics:
        area, points = (_cell(metrics[key]).strip() for key in ("VOC_mAP", "VOC07_mAP"))
        lines.append(f"VOC mAP at IoU .50: {area} (area), {points} (2007, 11 points)")
    kinds = [kind for kind in ("AP", "AP50") if kind in metrics]
    lines += ["", f"{'class':{width}}" + "".join(f"{kind:>9}" for kind in kinds)]
    lines += [
        padded(name, width) + "".join(_cell(metrics[f"{kind}/{name}"]) for kind in kinds)
        for name in classes
    ]
    return "\n".join(lines)


def _cell(value: float, width: int = 9) -> str:
    return f"{'-':>{width}}" if value < 0 else f"{value:{width}.3f}"
