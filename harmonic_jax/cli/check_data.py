"""`harmonic-jax check-data SPEC`: what is in a data set, and what is wrong with it."""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, NamedTuple

import cv2
import numpy as np
import tyro
from tyro.conf import Positional

from harmonic_jax.cli.command import FAILURES, command, complain
from harmonic_jax.cli.configs import load_config
from harmonic_jax.cli.doctor import class_findings, near_copies, network_findings
from harmonic_jax.config import DataConfig
from harmonic_jax.data.decode import NOTES, REFUSALS, ImageError, decode_record
from harmonic_jax.data.folders import shared_images
from harmonic_jax.data.records import DataError, DetectionSource
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.sources import list_splits, parse_spec, read_source
from harmonic_jax.terminal import Terminal, column_width, counted, padded, track

_MOST_TWINS = 3
_LEAK = "AP there says little about new images; keep them in one split"
QUANTILES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


class _Image(NamedTuple):
    name: str
    digest: bytes  # of its pixels
    gray: np.ndarray  # 8 x 9 levels


_Checked = tuple[_Image | None, list[tuple[str, str, str]]]  # and rule, example, outcome


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
    config_name: Annotated[str | None, tyro.conf.arg(name="config")] = None
    """A config, whose anchors and image sizes the objects to train on are held against."""


@command(Options, "check-data", failures=FAILURES)
def main(options: Options) -> int:
    """Prints the report of each split; 1 where a split has nothing usable, or cannot be read."""
    experiment = load_config(options.config_name) if options.config_name else None
    config, split = parse_spec(options.spec)
    same = {name: getattr(options, name) for name in ("max_objects", "eval_share", "masks")}
    config = dataclasses.replace(config, root=options.root or config.root, **same)
    splits = [split] if split else list_splits(config)
    if not splits:
        raise DataError(f"{options.spec}: no split found")
    sources: dict[str, DetectionSource] = {}
    images: dict[str, list[_Image]] = {}
    for name in splits:
        sources[name] = read_source(config, name)
        images[name] = _check(sources[name], config, options.decode)
    unusable = [n for n in splits if not (images[n] if options.decode else sources[n].records)]
    findings = [f"{s.name}: {doubt}" for s in sources.values() for doubt in s.report.doubts]
    for one, other in itertools.combinations_with_replacement(splits, 2):
        if one == other or not _is_nested(sources[one], sources[other]):
            findings += class_findings(sources[one], sources[other])
            findings += _copies(one, images[one], other, images[other])
    if experiment:
        trained = sources.get(experiment.data.train_split, sources[splits[0]])
        findings += network_findings(trained, experiment)
    looked = "box formats, class ids, classes of splits" + ", copies" * options.decode
    looked += ", object sizes, anchors" * bool(experiment)
    Terminal().print("\n".join(findings and ["findings:", *findings]) or f"no finding in {looked}")
    if unusable:
        complain(f"no usable image in {', '.join(map(repr, unusable))}")
    return 1 if unusable else 0


def _check(source: DetectionSource, config: DataConfig, decode: bool) -> list[_Image]:
    """Prints the report of one split; the images that were decoded."""
    report = DataReport()
    report.merge(source.report)
    checked = _decode_all(source, config) if decode else []
    for _, notes in checked:
        for rule, example, outcome in notes:
            report.add(rule, [example], outcome=outcome)
    console = Terminal()
    console.print(f"== {source.name}")
    console.print("\n".join(describe(source)))
    if not source.records and not report.findings:
        console.print("\nthe split's list of images is empty")
    console.print(f"\nrules (docs/data.md){'' if decode else ', images not decoded'}:")
    console.print(report.format())
    console.print(f"fingerprint {source.fingerprint()}\n")
    return [image for image, _ in checked if image is not None]


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
        decoded = decode_record(source, index, max_pixels=config.max_pixels)
    except ImageError as error:
        outcome = f"image refused: {REFUSALS[error.reason]}"
        return None, [(error.reason, f"{record.file_name}: {error}", outcome)]
    except OSError as error:
        told = f"{record.file_name}: {error.strerror or error}"
        return None, [("unreadable_image", told, "image refused")]
    notes = [(note, record.file_name, NOTES[note]) for note in decoded.notes]
    digest = hashlib.blake2b(decoded.image.tobytes(), digest_size=16).digest()
    gray = cv2.cvtColor(decoded.image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA)
    return _Image(record.file_name, digest, small), notes


def _is_nested(one: DetectionSource, other: DetectionSource) -> bool:
    """Whether all files of one are the other's too, as those of train are trainval's."""
    return 0 < len(shared_images(one, other)) == min(len(one.records), len(other.records))


def _copies(one: str, ours: list[_Image], other: str, theirs: list[_Image]) -> Iterator[str]:
    """Lines on the images of a split that are, or look like, images of another, or of itself."""
    first = {image.digest: image for image in reversed(ours)}
    same = [(image, first[image.digest]) for image in theirs if image.digest in first]
    if one == other:
        twins = [(image, twin) for image, twin in same if image is not twin]
        yield from _told(twins, other, "with a twin, pixel for pixel, counted twice")
        return
    yield from _told(same, other, f"also in {one}, pixel for pixel: {_LEAK}")
    rest = [image for image in theirs if image.digest not in first]
    if ours and rest:
        near = near_copies(*(np.stack([i.gray for i in images]) for images in (rest, ours)))
        same = [(rest[a], ours[b]) for a, b in near.items()]
        yield from _told(same, other, f"near copies of some in {one}: {_LEAK}")


def _told(pairs: list[tuple[_Image, _Image]], split: str, what: str) -> Iterator[str]:
    names = [a.name if a.name == b.name else f"{a.name} ({b.name})" for a, b in pairs]
    if names:
        more = ", .." if len(names) > _MOST_TWINS else ""
        number = counted(len(names), "image")
        yield f"{split}: {number} {what}: {', '.join(names[:_MOST_TWINS])}{more}"


def describe(source: DetectionSource) -> Iterator[str]:
    """Lines about a split: its size, its classes, and how large its objects are."""
    records = source.records
    labels = records.labels
    images = np.unique(np.column_stack([records.owners, labels]), axis=0)[:, 1]
    number = f"{counted(len(records), 'image')}, {counted(len(labels), 'object')}"
    yield f"{number}, {len(labels) / max(len(records), 1):.1f} an image"
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
    boxes = records.boxes.astype(np.float64)
    short_sides = records.sizes.min(axis=1)[records.owners]
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
