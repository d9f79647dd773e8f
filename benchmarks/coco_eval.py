"""COCO evaluation against pycocotools: 5000 images, some 35k objects, 500k detections.

    python -m benchmarks.coco_eval

In memory, each side starts from its own input, ready made: two tables for ours; an indexed COCO
object and a list of result dicts for pycocotools. The clock runs until the 12 numbers and each
class's AP are there (pycocotools: loadRes, evaluate, accumulate, summarize). From files, both read
the same two JSON files first. Both sides use one thread. pycocotools takes about a minute, so it
runs once by default, and ours several times; only the ratio within one run means anything.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from harmonic_jax.metrics.coco import coco_metrics
from harmonic_jax.metrics.files import (
    load_coco_annotations,
    load_coco_results,
    save_coco_annotations,
    save_coco_results,
)
from tests.metrics.synthetic import (
    coco_dicts,
    detector_output,
    index_for_pycocotools,
    pycocotools_metrics,
)

Metrics = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peer-repeats", type=int, default=1)
    args = parser.parse_args()

    truth, found = detector_output(
        0, num_images=args.images, num_classes=80, objects=7.2, detections=105
    )
    print(f"{args.images} images, {len(truth.labels)} objects, {len(found.labels)} detections")
    annotations, results = coco_dicts(truth, found)
    index = index_for_pycocotools(annotations)
    peer = [  # on copies: it writes into the results
        _timed(pycocotools_metrics, index, [dict(entry) for entry in results])
        for _ in range(args.peer_repeats)
    ]
    ours = [_timed(coco_metrics, truth, found) for _ in range(args.repeats)]
    _report("in memory", peer, ours)

    with tempfile.TemporaryDirectory() as folder:
        truth_path, found_path = Path(folder) / "truth.json", Path(folder) / "found.json"
        save_coco_annotations(truth_path, truth)
        save_coco_results(found_path, found, truth.category_ids)

        def ours_from_files() -> Metrics:
            start = time.perf_counter()
            loaded = load_coco_annotations(truth_path)
            results = load_coco_results(found_path, loaded)
            print(f"from files to tables: {time.perf_counter() - start:.2f} s")
            return coco_metrics(loaded, results)

        peer = [
            _timed(pycocotools_metrics, str(truth_path), str(found_path))
            for _ in range(args.peer_repeats)
        ]
        ours = [_timed(ours_from_files) for _ in range(min(args.repeats, 3))]
    _report("from files", peer, ours)


def _timed(function: Callable[..., Metrics], *inputs: Any) -> tuple[float, Metrics]:
    start = time.perf_counter()
    metrics = function(*inputs)
    return time.perf_counter() - start, metrics


def _report(
    name: str, peer: Iterable[tuple[float, Metrics]], ours: Iterable[tuple[float, Metrics]]
) -> None:
    peer_times, peer_metrics = zip(*peer, strict=True)
    our_times, our_metrics = zip(*ours, strict=True)
    peer_median, our_median = statistics.median(peer_times), statistics.median(our_times)
    difference = max(abs(our_metrics[0][key] - peer_metrics[0][key]) for key in peer_metrics[0])
    print(
        f"{name}: pycocotools {peer_median:.2f} s, ours {our_median:.3f} s, "
        f"ratio {peer_median / our_median:.0f}; largest difference of the "
        f"{len(peer_metrics[0])} numbers {difference:g}, AP {our_metrics[0]['AP']:.4f}"
    )


if __name__ == "__main__":
    main()
