"""`harmonic-jax check-data SPEC`: what is in a data set, and what is wrong with it."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

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
QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


@dataclasses.dataclass(frozen=True)
class Options:
    """Read a data set as training would, decode every image, and report."""

    spec: Positional[str]
    """coco:DIR, voc:DIR or tfds:NAME; append :SPLIT for one split only."""
    root: str | None = None
    """TFDS data directory of a tfds: data set."""
    max_objects: int = DataConfig().max_objects
    """As data.max_objects."""
    masks: bool = False
    """Read instance masks too."""
    decode: bool = True
    """Decode the images; annotations alone are faster."""


@command(Options, "check-data", failures=FAILURES)
def main(options: Options) -> int:
    """Prints the report of each split; 1 where a split has nothing usable, or cannot be read."""
    config, split = parse_spec(options.spec)
    root, objects = options.root or config.root, options.max_objects
    config = dataclasses.replace(config, root=root, max_objects=objects, masks=options.masks)
    splits = [split] if split else list_splits(config)
    if not splits:
        raise DataError(f"{options.spec}: no split found")
    images = _SameImages()
    unusable = [name for name in splits if not _check(config, name, images, options.decode)]
    for line in images.lines():
        Terminal().print(line)
    if unusable:
        complain(f"no usable image in {', '.join(map(repr, unusable))}")
    return 1 if unusable else 0


def _check(config: DataConfig, split: str, images: "_SameImages", decode: bool) -> bool:
    """Prints the report of one split; whether it has a usable image. `images` takes those."""
    source = read_source(config, split)
    report = DataReport()
    report.merge(source.report)
    checked = _decode_all(source, config) if decode else []
    for index, image in enumerate(checked):
        for rule, example, outcome in image.findings:
            report.add(rule, [example], outcome=outcome)
        if image.digest is not None:
            images.add(split, source.records[index].file_name, image.digest)
    refused = sum(image.digest is None for image in checked)
    console = Terminal()
    console.print(f"== {source.name}")
    console.print("\n".join(describe(source)))
    if not source.records and not report.findings:
        console.print("\nthe split's list of images is empty")
    console.print(f"\nrules (docs/data.md){'' if decode else ', images not decoded'}:")
    console.print(report.format())
    console.print(f"fingerprint {source.fingerprint()}\n")
    return len(source.records) > refused


class _Checked(NamedTuple):
    """An image that was decoded.

    Attributes:
      digest: of its file; None where the image is refused.
      findings: rule, example, outcome.
    """

    digest: bytes | None
    findings: list[tuple[str, str, str]]


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
    try:
        data = source.image_bytes(index)
        decoded = decode_image(
            data,
            max_pixels=config.max_pixels,
            annotated_size=(record.height, record.width),
        )
    except ImageError as error:
        outcome = f"image refused: {REFUSALS[error.reason]}"
        return _Checked(None, [(error.reason, f"{record.file_name}: {error}", outcome)])
    except OSError as error:
        told = f"{record.file_name}: {error.strerror or error}"
        return _Checked(None, [("unreadable_image", told, "image refused")])
    notes = [(note, record.file_name, NOTES[note]) for note in decoded.notes]
    return _Checked(hashlib.blake2b(data, digest_size=16).digest(), notes)


class _SameImages:
    """Collects the images of splits, and says which of them are the same, by their bytes."""

    def __init__(self) -> None:
        self._names: dict[bytes, dict[str, str]] = {}  # by digest the first name in each split
        self._same: dict[tuple[str, str], list[str]] = {}

    def add(self, split: str, name: str, digest: bytes) -> None:
        """Takes an image; a digest is that of all bytes of its file."""
        known = self._names.setdefault(digest, {})
        for other, first in known.items():
            example = name if name == first else f"{name} ({first})"
            self._same.setdefault((split, other), []).append(example)
        known.setdefault(split, name)

    def lines(self) -> Iterator[str]:
        """A line for each two splits that share images, and for each that repeats some."""
        for (split, other), examples in self._same.items():
            what = "have a twin" if split == other else f"are also in {other}"
            shown = ", ".join(examples[:_MOST_TWINS])
            more = ", .." if len(examples) > _MOST_TWINS else ""
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
