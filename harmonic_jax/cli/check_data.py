"""`harmonic-jax check-data SPEC`: what is in a data set, and what is wrong with it."""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tyro.conf import Positional

from harmonic_jax.cli.command import FAILURES, command, complain
from harmonic_jax.config import DataConfig
from harmonic_jax.data.decode import NOTES, REFUSALS, ImageError, decode_image
from harmonic_jax.data.records import DataError, DetectionSource
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.sources import list_splits, parse_spec, read_source
from harmonic_jax.terminal import Terminal, column_width, padded, track

_MOST_TWINS = 3
# The digest of a decoded image's bytes, None where it is refused; and rule, example, outcome.
_Checked = tuple[bytes | None, list[tuple[str, str, str]]]
QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


@dataclasses.dataclass(frozen=True)
class Options:
    """Read a data set as training would, decode every image, and report."""

    spec: Positional[str]
    """coco:DIR, voc:DIR, yolo:DIR or tfds:NAME; append :SPLIT for one split only."""
    root: str | None = None
    """TFDS data directory of a tfds: data set."""
    max_objects: int = DataConfig().max_objects
    """As data.max_objects."""
    eval_share: float | None = None
    """As data.eval_share, of a folder with one split, or with no lists."""
    masks: bool = False
    """Read instance masks too."""
    decode: bool = True
    """Decode the images; annotations alone are faster."""


@command(Options, "check-data", failures=FAILURES)
def main(options: Options) -> int:
    """Prints the report of each split; 1 where a split has nothing usable, or cannot be read."""
    config, split = parse_spec(options.spec)
    same = {name: getattr(options, name) for name in ("max_objects", "eval_share", "masks")}
    config = dataclasses.replace(config, root=options.root or config.root, **same)
    splits = [split] if split else list_splits(config)
    if not splits:
        raise DataError(f"{options.spec}: no split found")
    seen: dict[bytes, dict[str, list[str]]] = {}
    unusable = [name for name in splits if not _check(config, name, seen, options.decode)]
    for line in _same_images(seen):
        Terminal().print(line)
    if unusable:
        complain(f"no usable image in {', '.join(map(repr, unusable))}")
    return 1 if unusable else 0


def _check(
    config: DataConfig, split: str, seen: dict[bytes, dict[str, list[str]]], decode: bool
) -> bool:
    """Prints the report of one split; whether it has a usable image.

    `seen` takes those: of the digest of their bytes the names in each split.
    """
    source = read_source(config, split)
    report = DataReport()
    report.merge(source.report)
    checked = _decode_all(source, config) if decode else []
    for record, (digest, findings) in zip(source.records, checked, strict=False):
        for rule, example, outcome in findings:
            report.add(rule, [example], outcome=outcome)
        if digest is not None:
            seen.setdefault(digest, {}).setdefault(split, []).append(record.file_name)
    refused = sum(digest is None for digest, _ in checked)
    console = Terminal()
    console.print(f"== {source.name}")
    console.print("\n".join(describe(source)))
    if not source.records and not report.findings:
        console.print("\nthe split's list of images is empty")
    console.print(f"\nrules (docs/data.md){'' if decode else ', images not decoded'}:")
    console.print(report.format())
    console.print(f"fingerprint {source.fingerprint()}\n")
    return len(source.records) > refused


def _decode_all(source: DetectionSource, config: DataConfig) -> list[_Checked]:
    """Decodes every image as training would, in threads."""
    number = len(source.records)
    pool = ThreadPoolExecutor(max(config.num_threads, os.cpu_count() or 1))
    try:
        checked = pool.map(lambda index: _decode_one(source, index, config), range(number))
        console = Terminal(stderr=True, lossy=True)
        return list(track(checked, number, f"{source.name}: decoding", console=console))
    finally:  # Ctrl-C does not wait for all that was submitted
        pool.shutdown(cancel_futures=True)


def _decode_one(source: DetectionSource, index: int, config: DataConfig) -> _Checked:
    record = source.records[index]
    size = (record.height, record.width)
    try:
        data = source.image_bytes(index)
        decoded = decode_image(
            data, max_pixels=config.max_pixels, annotated_size=size, upright=source.upright
        )
    except ImageError as error:
        outcome = f"image refused: {REFUSALS[error.reason]}"
        return None, [(error.reason, f"{record.file_name}: {error}", outcome)]
    except OSError as error:
        told = f"{record.file_name}: {error.strerror or error}"
        return None, [("unreadable_image", told, "image refused")]
    notes = [(note, record.file_name, NOTES[note]) for note in decoded.notes]
    return hashlib.blake2b(data, digest_size=16).digest(), notes


def _same_images(seen: dict[bytes, dict[str, list[str]]]) -> Iterator[str]:
    """A line for each two splits that share images, and for each that repeats some."""
    same: dict[tuple[str, str], list[str]] = {}
    for names in seen.values():
        for split, (first, *others) in names.items():
            same.setdefault((split, split), []).extend(f"{name} ({first})" for name in others)
        for (other, theirs), (split, ours) in itertools.combinations(names.items(), 2):
            for name in ours:
                example = name if name == theirs[0] else f"{name} ({theirs[0]})"
                same.setdefault((split, other), []).append(example)
    for (split, other), examples in same.items():
        what = "have a twin" if split == other else f"are also in {other}"
        more = ", .." if len(examples) > _MOST_TWINS else ""
        if examples:
            shown = ", ".join(examples[:_MOST_TWINS])
            yield f"{len(examples)} images of {split} {what}, byte for byte: {shown}{more}"


def describe(source: DetectionSource) -> Iterator[str]:
    """Lines about a split: its size, its classes, and how large its objects are."""
    records = source.records
    objects = [record.labels for record in records]
    labels = np.concatenate([*objects, np.zeros(0, np.int32)])
    images = np.concatenate([*map(np.unique, objects), np.zeros(0, np.int32)])
    per_image = len(labels) / max(len(records), 1)
    yield f"{len(records)} images, {len(labels)} objects, {per_image:.1f} an image"
    width = column_width(source.class_names, heading="class")
    yield f"\n{'class':<{width}}  {'objects':>8}  {'images':>8}"
    for label, name in enumerate(source.class_names):
        counts = (labels == label).sum(), (images == label).sum()
        yield f"{padded(name, width)}  {counts[0]:>8}  {counts[1]:>8}"
    if len(labels):
        yield ""
        yield from _size_quantiles(source)


def _size_quantiles(source: DetectionSource) -> Iterator[str]:
    """What anchors have to cover, in pixels of the original images."""
    records = source.records
    boxes = np.concatenate([record.boxes for record in records]).astype(np.float64)
    short_sides = np.concatenate(
        [np.full(len(record.boxes), min(record.height, record.width)) for record in records]
    )
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    size = np.sqrt(width * height)
    rows = {
        "width": width,
        "height": height,
        "size = sqrt(w h)": size,
        "size / short side": size / short_sides,
        "height / width": height / width,
    }
    header = "".join(f"{f'{quantile:.0%}':>9}" for quantile in QUANTILES)
    yield f"{'boxes, quantiles':<18}{header}"
    for name, values in rows.items():
        cells = "".join(f"{value:>9.4g}" for value in np.quantile(values, QUANTILES))
        yield f"{name:<18}{cells}"
