"""The feed alone: JPEG files to padded uint8 batches, against PyTorch and against raw Grain.

    python -m benchmarks.feed FOLDER [--batch 8] [--images 320] [--repeats 5]

FOLDER is in COCO layout. All sides make the same batches of 800 x 1344 or 1344 x 800 from the same
files in the same order, without augmentation: PyTorch's DataLoader with Pillow (which is tried with
several numbers of worker processes; the best counts), and Grain with our functions for decoding,
resizing and padding but without our loader. Checked first: Grain's batches are ours bit for bit,
PyTorch's up to the interpolation. Processor time counts all threads and worker processes.
"""

import argparse
import functools
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.feed_torch import Item, TorchFeed
from harmonic_jax.config import AugmentConfig, DataConfig
from harmonic_jax.data.decode import decode_image
from harmonic_jax.data.loader import train_batches
from harmonic_jax.data.plan import TrainPlan
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.resize import fill_around, fit_size, resize_image
from harmonic_jax.data.sources import open_source

MOST_APART = 1.0  # mean difference of pixels in 0..255 between OpenCV's and Pillow's bilinear
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train2017")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=320, help="images a pass")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=DataConfig.num_threads, help="Grain's")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4], help="PyTorch's")
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--max-side", type=int, default=1333)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores

    config = DataConfig(
        format="coco",
        root=str(args.folder),
        short_sides=(args.short_side,),
        max_side=args.max_side,
        augment=AugmentConfig(flip=0.0),
        num_threads=args.threads,
    )
    source = open_source(config, args.split)
    steps = args.images // args.batch
    items = _items(source, config, batch_size=args.batch, steps=steps)
    ours = functools.partial(_ours, source, config, args.batch, steps)
    grain = functools.partial(_grain, items, args.threads)
    feeds = {workers: TorchFeed(items, workers=workers) for workers in args.workers}
    _check(ours(), grain(), feeds[args.workers[0]])

    print(f"{steps} batches of {args.batch} images a pass, {len(source.records)} files")
    workers = _best(feeds)
    sides: dict[str, tuple[Callable[[], Iterable], Callable[[], float]]] = {
        "ours": (ours, lambda: 0.0),
        "Grain": (grain, lambda: 0.0),
        f"DataLoader, {workers} workers": (feeds[workers].__iter__, feeds[workers].cpu_seconds),
    }
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.repeats):
        for name, (feed, workers_cpu) in sides.items():
            seconds, busy = _time(feed, workers_cpu)
            wall[name].append(seconds)
            cpu[name].append(busy)
    _print(wall, cpu, steps * args.batch)


def _items(
    source: DetectionSource, config: DataConfig, *, batch_size: int, steps: int
) -> list[list[Item]]:
    """The files of each batch, in the order of our loader."""
    plan = TrainPlan(source.records, config, batch_size=batch_size, seed=SEED)
    paths: Any = source  # of a folder: it knows its files
    batches = []
    for step in range(steps):
        padded = config.buckets[plan[step].bucket]
        batch = []
        for index in plan[step].indices:
            record = source.records[int(index)]
            size = fit_size(
                record.height,
                record.width,
                short_side=plan[step].short_side,
                max_side=config.max_side,
                bounds=padded,
            )
            batch.append(Item(str(paths.paths[index]), size, padded))
        batches.append(batch)
    return batches


def _ours(source: DetectionSource, config: DataConfig, batch_size: int, steps: int) -> Iterable:
    batches = train_batches(source, config, batch_size=batch_size, seed=SEED, num_steps=steps)
    with batches:
        for batch in batches:
            yield batch.images


def _grain(items: list[list[Item]], threads: int) -> Iterable:
    """What one writes with Grain by hand: files in order, mapped in threads, batched."""
    import grain

    def load(item: Item) -> tuple[np.ndarray, tuple[int, int]]:
        image = decode_image(Path(item.path).read_bytes(), max_pixels=64_000_000).image
        return resize_image(image, item.size), item.padded

    def collate(samples: list[tuple[np.ndarray, tuple[int, int]]]) -> np.ndarray:
        batch = np.empty((len(samples), *samples[0][1], 3), np.uint8)
        for canvas, (image, _) in zip(batch, samples, strict=True):
            canvas[: image.shape[0], : image.shape[1]] = image
            fill_around(canvas, (image.shape[0], image.shape[1]))
        return batch

    flat = [item for batch in items for item in batch]
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(len(items[0]), 2 * threads)
    )
    dataset = grain.MapDataset.source(flat).map(load).to_iter_dataset(options)
    iterator = iter(dataset.batch(len(items[0]), batch_fn=collate))
    yield from iterator
    iterator.close()


def _check(ours: Iterable, grain: Iterable, torch_feed: TorchFeed) -> None:
    apart = []
    for mine, raw, other in zip(ours, grain, torch_feed, strict=True):
        np.testing.assert_array_equal(mine, raw)
        apart.append(np.abs(mine.astype(np.int16) - other.numpy()).mean())
    if max(apart) > MOST_APART:
        raise SystemExit(f"no agreement: pixels are {max(apart):.2f} apart on average")
    print(f"batches equal Grain's; pixels are {np.mean(apart):.2f} from Pillow's on average")


def _best(feeds: dict[int, TorchFeed]) -> int:
    """The number of workers with the fastest of two passes; the first starts them."""
    seconds = {}
    for workers, feed in feeds.items():
        for _ in feed:
            pass
        seconds[workers] = min(_time(feed.__iter__, feed.cpu_seconds)[0] for _ in range(2))
    listing = ", ".join(f"{workers}: {value:.1f} s" for workers, value in seconds.items())
    print(f"DataLoader by workers: {listing}")
    return min(seconds, key=lambda workers: seconds[workers])


def _time(feed: Callable[[], Iterable], workers_cpu: Callable[[], float]) -> tuple[float, float]:
    """Wall and processor seconds of one pass."""
    wall, cpu = time.perf_counter(), time.process_time() + workers_cpu()
    for _ in feed():
        pass
    return time.perf_counter() - wall, time.process_time() + workers_cpu() - cpu


def _print(wall: dict[str, list[float]], cpu: dict[str, list[float]], images: int) -> None:
    mine, my_cpu = statistics.median(wall["ours"]), statistics.median(cpu["ours"])
    for name in wall:
        seconds, busy = statistics.median(wall[name]), statistics.median(cpu[name])
        print(
            f"{name:24} {images / seconds:7.1f} images/s   {1e3 * busy / images:6.2f} ms of "
            f"processor an image   ours: {seconds / mine:5.2f}x in wall time, "
            f"{busy / my_cpu:5.2f}x in processor time"
        )


if __name__ == "__main__":
    main()
