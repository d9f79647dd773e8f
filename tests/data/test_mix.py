"""Several images in one: boxes and masks follow the pixels, whatever the threads and processes."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from harmonic_jax.config import AugmentConfig, ConfigError, DataConfig
from harmonic_jax.data.augment import Sample
from harmonic_jax.data.loader import train_batches
from harmonic_jax.data.mix import MIN_SEEN, Mixer
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.resize import FILL_COLOUR
from harmonic_jax.data.sample import mask_grids, num_blank
from harmonic_jax.masks import encode_masks
from harmonic_jax.structures import Batch
from tests.data.fake_source import FakeSource, encode, make_record, noise

# No mean of two of them, or of one and what is around objects, is near a third.
COLOURS = [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)][1:]
CELLS = 56


def draw(labels: range, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of rectangles side by side, coloured by their labels, with a hole at the top left;
    their masks. A window that has the centre of one sees it up to all sides of the cut box."""
    masks = np.zeros((len(labels), height, width), np.uint8)
    rng = np.random.default_rng(labels.start)
    image = np.zeros((height, width, 3), np.uint8)
    for place, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        left, right = ((place + end) * width // len(labels) + 2 - 4 * end for end in (0, 1))
        top, bottom = rng.integers(1, height // 4), height - rng.integers(1, height // 4)
        mask[top:bottom, left:right] = 1
        wide, high = (right - left) // 16, (bottom - top) // 16
        mask[top + high : top + 7 * high, left + wide : left + 7 * wide] = 0
        image[mask > 0] = COLOURS[label]
    return image, masks


def drawn_sample(labels: range, height: int, width: int) -> Sample:
    image, masks = draw(labels, height, width)
    table = encode_masks(masks)
    boxes = table.boxes().astype(np.float32)
    return Sample(image, boxes, np.array(labels, np.int32), boxes, table, boxes)


def drawn_source(*images: tuple[range, int, int]) -> FakeSource:
    records, files = [], []
    for index, (labels, height, width) in enumerate(images):
        image, masks = draw(labels, height, width)
        boxes = encode_masks(masks).boxes()
        record = make_record(index, height=height, width=width, boxes=boxes, masks=masks)
        records.append(dataclasses.replace(record, labels=np.array(labels, np.int32)))
        files.append(encode(image))
    return FakeSource(records, files)


SIZES = (
    (range(2), 192, 256), (range(2, 4), 256, 192), (range(4, 6), 120, 280), (range(6, 7), 160, 160),
)  # fmt: skip
SAMPLES = [drawn_sample(*size) for size in SIZES]
SOURCE = drawn_source(*SIZES)


def configured(*, resize: Any = "fit", masks: bool = True, **changes: Any) -> DataConfig:
    return DataConfig(
        short_sides=(192,), max_side=256, max_objects=20, mask_size=CELLS, masks=masks,
        resize=resize, augment=AugmentConfig(**{"flip": 0.0, **changes}),
    )  # fmt: skip


def load(source: Any, config: DataConfig, **options: int) -> tuple[list[Batch], DataReport]:
    settings = {"batch_size": 4, "seed": 3, "num_steps": 5, **options}
    with train_batches(source, config, **settings) as batches:
        return list(batches), batches.report


Object = tuple[np.ndarray, int, np.ndarray, np.ndarray, np.ndarray]  # image, label, box, ..


def loaded(config: DataConfig) -> Iterator[Object]:
    """The objects of batches."""
    for batch in load(SOURCE, config)[0]:
        truth: Any = batch.ground_truth
        for row, place in zip(*np.nonzero(truth.valid), strict=True):
            height, width = batch.image_size[row].astype(int)
            arrays = truth.labels, truth.boxes, truth.masks.values, truth.masks.frames
            yield batch.images[row, :height, :width], *(array[row, place] for array in arrays)


def mixed(config: DataConfig) -> Iterator[Object]:
    """The objects of samples of which no two are of one image."""
    for seed in range(40):
        samples, rng = iter(np.roll(range(4), seed)), np.random.default_rng(seed)
        size = (192, 192) if config.resize == "warp" else (192, 256)
        mixer = Mixer(np.array(size), config, rng, Counter())
        sample = mixer.mix(SAMPLES[next(samples)], lambda it=samples: SAMPLES[next(it)])
        assert sample.image.shape == (*size, 3)
        assert sample.masks is not None
        grids = mask_grids(sample.masks, sample.cuts, size=CELLS)
        for each in zip(sample.labels, sample.boxes, grids, sample.frames, strict=True):
            yield sample.image, *each


def pixels_of(image: np.ndarray, label: int) -> np.ndarray:
    """Pixels that have about the colour of a label, bool [h, w]."""
    return (np.abs(image.astype(int) - COLOURS[label]) < 128).all(axis=-1)


def bounds(pixels: np.ndarray) -> list[int]:
    ys, xs = np.nonzero(pixels)
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def drawn(grid: np.ndarray, frame: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask drawn from its grid: the cell in which each pixel's centre lies, bool [h, w]."""
    places = []
    for axis in (0, 1):
        low, high = frame[1 - axis], frame[3 - axis]
        cell = np.floor((np.arange(shape[axis]) + 0.5 - low) / (high - low) * CELLS)
        places.append(np.where((cell >= 0) & (cell < CELLS), cell, CELLS).astype(int))
    return np.pad(grid, ((0, 1), (0, 1)))[np.ix_(*places)] > 127


LARGER, PASTES = {"large_scale_jitter": (0.4, 2.0)}, {"copy_paste": 1.0}


@pytest.mark.parametrize("resize", ["fit", "warp"])
@pytest.mark.parametrize(
    ("found", "changes"),
    [
        (loaded, LARGER),
        (loaded, {"crop": True, "expand": 1.5, "flip": 0.5, "vertical_flip": 0.5} | LARGER),
        (mixed, {"mosaic": 1.0}),
        (mixed, {"mosaic": 1.0, "large_scale_jitter": (0.7, 2.0)}),
        (mixed, PASTES),
        (mixed, PASTES | LARGER),
    ],
)
def test_boxes_and_masks_follow_the_pixels(found: Any, changes: Any, resize: Any) -> None:
    labels, is_cut = Counter[int](), False
    for image, label, box, grid, frame in found(configured(resize=resize, **changes)):
        pixels = pixels_of(image, label)
        if (box[2:] - box[:2]).min() < 24:
            continue  # hardly a pixel has its own colour
        labels[int(label)] += 1
        is_cut |= bool((np.abs(frame - box) > 2).any())
        np.testing.assert_allclose(bounds(pixels), box, atol=2.1)
        mask = drawn(grid, frame, pixels.shape)
        if pixels.sum() < 0.4 * (box[2:] - box[:2]).prod():
            continue  # thin edges, of a few cells' width, are left of it
        assert (mask & pixels).sum() > 0.88 * (mask | pixels).sum()
    assert min(labels[label] for label in range(7)) > 2
    assert is_cut == ("crop" in changes)


def test_pasting_equals_a_composite_made_by_brute_force() -> None:
    """Without scaling pixels have exact colours, and the image says which object each shows."""
    config = configured(**PASTES)
    below, above = drawn_sample(range(3), 192, 256), drawn_sample(range(3, 5), 192, 256)
    full = {label: (sample.image == COLOURS[label]).all(axis=-1)
            for sample in (below, above) for label in sample.labels.tolist()}  # fmt: skip
    lost, subsets = Counter[str](), set()
    for seed in range(40):
        before = lost["pasted_over"]
        mixer = Mixer(np.array((192, 256)), config, np.random.default_rng(seed), lost)
        sample = mixer.mix(below, lambda: above)
        assert sample.masks is not None
        pasted = [label for label in sample.labels.tolist() if label > 2]
        subsets.add(tuple(pasted))
        covered = np.any([full[label] for label in pasted], axis=0) if pasted else False
        expected = np.where(
            np.broadcast_to(covered, (192, 256))[..., None], above.image, below.image
        )
        np.testing.assert_array_equal(sample.image, expected)
        seen = {label: full[label] & ~np.asarray(covered) for label in range(3)}
        seen |= {label: full[label] for label in pasted}
        kept = [label for label in seen if seen[label].sum() >= MIN_SEEN * full[label].sum()]
        assert sample.labels.tolist() == kept
        assert lost["pasted_over"] - before == len(seen) - len(kept)
        np.testing.assert_array_equal(sample.boxes, [bounds(seen[label]) for label in kept])
        np.testing.assert_array_equal(sample.frames, sample.boxes)
        table = encode_masks(np.array([seen[label] for label in kept]))
        np.testing.assert_allclose(
            mask_grids(sample.masks, sample.cuts, size=CELLS),
            mask_grids(table, table.boxes(), size=CELLS),
            atol=1,
        )
    assert len(subsets) == 4
    assert lost["pasted_over"] > 0


def test_unknown_masks_are_never_pasted_and_count_as_boxes_below() -> None:
    def unknown(sample: Sample) -> Sample:
        return sample._replace(masks=encode_masks(np.zeros((len(sample.boxes), 192, 256))))

    config = configured(**PASTES)
    below, above = drawn_sample(range(3), 192, 256), drawn_sample(range(3, 6), 192, 256)
    numbers = set()
    for seed in range(20):
        mixer = Mixer(np.array((192, 256)), config, np.random.default_rng(seed), Counter())
        same = mixer.mix(below, lambda: unknown(above))
        np.testing.assert_array_equal(same.image, below.image)
        assert same.labels.tolist() == [0, 1, 2]
        sample = mixer.mix(unknown(below), lambda: above)
        assert sample.masks is not None
        old = sample.labels < 3
        numbers.add(old.sum())
        np.testing.assert_array_equal(sample.boxes[old], below.boxes[sample.labels[old]])
        np.testing.assert_array_equal(sample.masks.areas() == 0, old)
    assert 3 in numbers


def test_mixup_keeps_the_objects_of_both() -> None:
    levels = []
    for seed in range(60):
        mixer = Mixer(np.array((192, 256)), configured(mixup=1.0), np.random.default_rng(seed),
                      Counter())  # fmt: skip
        one, other = (
            SAMPLES[0]._replace(image=np.full((192, 256, 3), v, np.uint8)) for v in (0, 200)
        )
        sample = mixer.mix(one, lambda other=other: other)
        assert np.ptp(sample.image) == 0
        levels.append(int(sample.image[0, 0, 0]))
        np.testing.assert_array_equal(sample.boxes, np.tile(SAMPLES[0].boxes, (2, 1)))
        assert sample.labels.tolist() == [0, 1, 0, 1]
    assert 90 < np.mean(levels) < 110
    assert 50 < min(levels) < 85
    assert 115 < max(levels) < 150


def test_jitter_draws_from_all_factors_and_pads_at_the_bottom_right() -> None:
    image, ratios = np.full((192, 256, 3), 9, np.uint8), []
    sample = SAMPLES[0]._replace(image=image)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        jittered = Mixer(np.array((192, 256)), configured(large_scale_jitter=(0.1, 2.0)), rng,
                         Counter()).jitter(sample)  # fmt: skip
        seen = (jittered.image == 9).all(axis=-1)
        height, width = seen.any(axis=1).sum(), seen.any(axis=0).sum()
        assert seen[:height, :width].all()
        assert (jittered.image[~seen] == FILL_COLOUR).all()
        ratios.append(height / 192)
    assert min(ratios) < 0.15
    assert 0.35 < np.mean(np.array(ratios) < 1) < 0.6


ALL = AugmentConfig(
    mosaic=0.5, large_scale_jitter=(0.1, 2.0), copy_paste=0.6, mixup=0.5, photometric=True,
    expand=1.5, crop=True, vertical_flip=0.3, erase=0.5,
)  # fmt: skip
MIXED = dataclasses.replace(configured(), augment=ALL)


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_batches_depend_on_seed_step_and_row_alone() -> None:
    whole, report = load(SOURCE, MIXED, num_steps=6)
    for threads in (1, 8):
        again = load(SOURCE, dataclasses.replace(MIXED, num_threads=threads), num_steps=6)
        assert_equal(whole, again[0])
        assert again[1].findings.keys() == report.findings.keys()
    assert_equal(whole[4:], load(SOURCE, MIXED, num_steps=6, start_step=4)[0])
    parts = [load(SOURCE, MIXED, num_steps=6, process_index=p, process_count=2)[0] for p in (0, 1)]
    joined = [
        jax.tree.map(lambda *x: np.concatenate(x), *step) for step in zip(*parts, strict=True)
    ]
    assert_equal(whole, joined)
    other, _ = load(SOURCE, MIXED, num_steps=6, seed=4)
    assert any((a.images != b.images).any() for a, b in zip(whole, other, strict=True))


def test_boxes_are_the_same_without_masks() -> None:
    augment = dataclasses.replace(ALL, copy_paste=0.0)
    for a, b in zip(
        load(SOURCE, dataclasses.replace(MIXED, augment=augment))[0],
        load(SOURCE, dataclasses.replace(MIXED, augment=augment, masks=False))[0],
        strict=True,
    ):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.ground_truth.boxes, b.ground_truth.boxes)


@pytest.mark.parametrize("changes", [{"mosaic": 1.0}, {"mixup": 1.0}, PASTES])
def test_unreadable_partners_are_left_out_and_counted(changes: dict[str, float]) -> None:
    source = drawn_source((range(2), 192, 256), (range(2, 4), 192, 256))
    source.files[1] = b"nothing"
    batches, report = load(source, configured(**changes), batch_size=2, num_steps=8)
    number = 0
    for batch in batches:
        np.testing.assert_array_equal(batch.is_real, batch.record_index == 0)
        number += int(batch.is_real.sum())
        truth = batch.ground_truth
        assert (truth.labels[truth.valid] < 2).all()
        assert truth.valid.any(axis=1).tolist() == batch.is_real.tolist()
    assert number == num_blank(report) == 8
    assert report.count("not_an_image") == 8
    partners = 3 if "mosaic" in changes else 1
    assert 0 < report.count("unreadable_partner") < partners * number
    assert report.examples("unreadable_partner")[0].startswith("image1: ")


def test_every_object_is_in_the_batch_or_counted() -> None:
    config = dataclasses.replace(configured(mosaic=1.0), max_objects=4)
    batches, report = load(SOURCE, config)
    source = drawn_source((range(2), 192, 256))
    batches, report = load(source, config)
    kept = sum(int(batch.ground_truth.valid.sum()) for batch in batches)
    assert kept + report.count("cropped_away") + report.count("too_many_objects") == 20 * 4 * 2
    assert report.count("cropped_away") > 0 < report.count("too_many_objects")


def test_images_of_any_size_and_without_objects() -> None:
    sizes = (1, 1), (1, 90), (300, 3), (30, 20)
    records = [make_record(index, height=h, width=w, boxes=[[0, 0, w, h]] if index != 3 else [],
                           masks=np.ones((int(index != 3), h, w)))
               for index, (h, w) in enumerate(sizes)]  # fmt: skip
    source = FakeSource(records, [encode(noise(h, w)) for h, w in sizes])
    batches, _ = load(source, dataclasses.replace(MIXED, keep_empty=True), num_steps=12)
    for batch in batches:
        assert batch.is_real.all()
        boxes = batch.ground_truth.boxes[batch.ground_truth.valid]
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert np.isfinite(boxes).all()


def test_wrong_settings_are_told_by_name() -> None:
    for changes, message in (
        ({"mosaic": 1.5}, r"augment.mosaic is 1.5; it must be a number in \[0, 1\]"),
        ({"large_scale_jitter": (2.0, 0.1)}, r"augment.large_scale_jitter is \(2.0, 0.1\); .*<="),
        ({"large_scale_jitter": 0.5}, r"augment.large_scale_jitter is 0.5; it must be a tuple"),
        ({"copy_paste": 0.5}, r"data.augment.copy_paste is 0.5; it must be 0 unless data.masks is"),
    ):
        with pytest.raises(ConfigError, match=message):
            configured(masks=False, **changes)
