"""Batches: the same whatever the threads, processes and interruptions; bad images counted."""

import dataclasses
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from harmonic_jax.config import AugmentConfig, DataConfig
from harmonic_jax.data.loader import LoaderError, eval_batches, order_fingerprint, train_batches
from harmonic_jax.data.plan import TrainPlan
from harmonic_jax.data.records import DataError
from harmonic_jax.data.resize import FILL_COLOUR
from harmonic_jax.structures import Batch
from tests.data.fake_source import FakeSource, encode, make_record, mixed_source, noise

SSD = AugmentConfig(photometric=True, expand=2.0, crop=True, vertical_flip=0.3)
SHAPES = {"max_side": 64, "stride": 16, "max_objects": 5}
CONFIG = DataConfig(short_sides=(32, 48), num_threads=3, augment=SSD, **SHAPES)
PLAIN = DataConfig(short_sides=(48,), augment=AugmentConfig(flip=0.0), **SHAPES)
SOURCE = mixed_source()


def changed(config: DataConfig, **options: Any) -> DataConfig:
    return DataConfig(**{**vars(config), **options})


def train(source: Any = SOURCE, config: DataConfig = CONFIG, **options: int) -> list[Batch]:
    settings = {"batch_size": 4, "seed": 1, "num_steps": 6, **options}
    with train_batches(source, config, **settings) as batches:
        return list(batches)


def evaluate(source: Any = SOURCE, config: DataConfig = PLAIN, **options: int) -> list[Batch]:
    with eval_batches(source, config, **{"batch_size": 4, **options}) as batches:
        return list(batches)


def one_image(record: Any = None, image: np.ndarray | None = None) -> FakeSource:
    return FakeSource(
        [record or make_record(0)], [encode(noise(24, 32) if image is None else image)]
    )


def assert_equal(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def joined(batches: list[Batch], field: str) -> np.ndarray:
    return np.concatenate([getattr(batch, field) for batch in batches])


def test_shapes_types_and_padding() -> None:
    shapes = set()
    for batch in train():
        shapes.add(batch.images.shape)
        assert {leaf.shape[0] for leaf in jax.tree.leaves(batch)} == {4}
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(batch))
        assert batch.images.dtype == np.uint8
        assert batch.image_size.dtype == batch.scale.dtype == np.float32
        assert batch.record_index.dtype == batch.ground_truth.labels.dtype == np.int32
        assert batch.is_real.all()
        truth = batch.ground_truth
        assert truth.boxes.shape == (4, 5, 4)
        assert truth.boxes.dtype == np.float32
        assert (truth.valid.sum(axis=1) == 1).all()
        for row in range(4):
            height, width = batch.image_size[row].astype(int)
            assert (batch.images[row, height:] == FILL_COLOUR).all()
            assert (batch.images[row, :, width:] == FILL_COLOUR).all()
            x1, y1, x2, y2 = truth.boxes[row, 0]
            assert 0 <= x1 < x2 <= width + 1e-3
            assert 0 <= y1 < y2 <= height + 1e-3
    assert shapes == {(4, 48, 64, 3), (4, 64, 48, 3)}


def test_threads_and_slow_images_do_not_matter() -> None:
    class SlowSource(FakeSource):
        def image_bytes(self, index: int) -> bytes:
            time.sleep(0.02 * (index % 3))
            return super().image_bytes(index)

    batches = train()
    for threads in 1, 8:
        assert_equal(batches, train(config=changed(CONFIG, num_threads=threads)))
    assert_equal(batches, train(SlowSource(SOURCE.records, SOURCE.files)))
    assert_equal(batches, train(batch_size=4, process_index=0, process_count=1))


def test_resuming_gives_the_uninterrupted_batches() -> None:
    whole = train(num_steps=9)
    for start in (1, 4, 8):
        assert_equal(whole[start:], train(num_steps=9, start_step=start))
    assert train(num_steps=9, start_step=9) == []
    with train_batches(SOURCE, CONFIG, batch_size=4, seed=1, num_steps=9) as batches:
        begun = [next(batches) for _ in range(2)]
    assert_equal(whole, begun + train(num_steps=9, start_step=2))


def test_the_order_is_that_of_the_plan_and_of_the_seed() -> None:
    plan = TrainPlan(SOURCE.records, CONFIG, batch_size=4, seed=1)
    batches = train()
    for step, batch in enumerate(batches):
        np.testing.assert_array_equal(batch.record_index, plan[step].indices)
    other = joined(train(seed=2), "record_index")
    assert not np.array_equal(joined(batches, "record_index"), other)


def test_the_same_image_is_augmented_anew_each_time() -> None:
    seen = {batch.images[row].tobytes() for batch in train(one_image()) for row in range(4)}
    assert len(seen) > 12


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batches(count: int) -> None:
    for load in train, evaluate:
        parts = [load(process_index=p, process_count=count) for p in range(count)]
        together = [
            jax.tree.map(lambda *leaves: np.concatenate(leaves), *step)
            for step in zip(*parts, strict=True)
        ]
        assert_equal(load(), together)


def test_evaluation_sees_every_image_once_and_fills_the_tail() -> None:
    batches = evaluate()
    index, is_real = joined(batches, "record_index"), joined(batches, "is_real")
    assert sorted(index[is_real].tolist()) == list(range(11))
    assert index[~is_real].tolist() == [-1]
    tail = next(batch for batch in batches if not batch.is_real.all())
    row = int(np.flatnonzero(~tail.is_real)[0])
    assert (tail.images[row] == FILL_COLOUR).all()
    assert not tail.ground_truth.valid[row].any()
    assert (tail.scale[row] == 1).all()
    assert tail.image_size[row].tolist() == list(tail.images.shape[1:3])


def test_scale_leads_back_to_original_pixels() -> None:
    box = [2.5, 3, 12, 15]
    source = one_image(make_record(0, height=24, width=33, boxes=[box]), noise(24, 33))
    (batch,) = evaluate(source, batch_size=1)
    height, width = batch.image_size[0]
    assert (height, width) == (47, 64)  # the long side decides: 24 * 64 / 33 = 46.5
    np.testing.assert_allclose(batch.scale[0], [height / 24, width / 33])
    back = batch.ground_truth.boxes[0, 0] / batch.scale[0][[1, 0, 1, 0]]
    np.testing.assert_allclose(back, box, rtol=1e-6)


def test_evaluation_does_not_augment() -> None:
    assert_equal(evaluate(config=changed(PLAIN, augment=SSD)), evaluate())
    image = noise(48, 64, seed=9)
    same = one_image(make_record(0, height=48, width=64), image)
    np.testing.assert_array_equal(evaluate(same, batch_size=1)[0].images[0], image)


def test_warp_stretches_to_the_square() -> None:
    config = changed(PLAIN, resize="warp", short_sides=(32,))
    (batch,) = train(one_image(make_record(0, boxes=[[8, 6, 16, 12]])), config, num_steps=1,
                     batch_size=1)  # fmt: skip
    assert batch.images.shape == (1, 32, 32, 3)
    np.testing.assert_allclose(batch.scale[0], [32 / 24, 1.0])
    np.testing.assert_allclose(batch.ground_truth.boxes[0, 0], [8, 8, 16, 16])


def bad_source() -> tuple[FakeSource, list[str]]:
    """One image of each kind of trouble, and the rule that each must be counted by."""
    good = encode(noise(24, 32), "JPEG")
    files: dict[str, bytes | Exception] = {
        "missing_image": FileNotFoundError(2, "No such file"),
        "unreadable_image": PermissionError(13, "Permission denied"),
        "truncated": good[:-40],
        "not_an_image": b"hello",
        "empty": b"",
        "size_mismatch": encode(noise(20, 20)),
        "too_large": encode(noise(60, 60)),
        "grayscale": encode(noise(24, 32)[..., 0]),
        "": good,
    }
    records = [make_record(index) for index in range(len(files))]
    records[6] = make_record(6, height=60, width=60)
    return FakeSource(records, list(files.values())), list(filter(None, files))


def test_bad_images_are_blank_counted_and_named() -> None:
    source, rules = bad_source()
    with eval_batches(source, changed(PLAIN, max_pixels=2000), batch_size=3) as batches:
        found = list(batches)
        report = batches.report
    assert {rule: f.count for rule, f in report.findings.items()} == dict.fromkeys(rules, 1)
    for row, rule in enumerate(rules):
        (example,) = report.examples(rule)
        assert example.startswith(f"image{row}"), example
        assert "\n" not in example
        assert report.findings[rule].outcome
    index = joined(found, "record_index")
    assert index.tolist() == list(range(9))  # a blank row still says which image it was
    assert index[joined(found, "is_real")].tolist() == [7, 8]
    for batch in found:
        blank = ~batch.is_real
        assert (batch.images[blank] == FILL_COLOUR).all()
        assert not batch.ground_truth.valid[blank].any()


def test_training_goes_on_over_bad_images() -> None:
    with train_batches(bad_source()[0], PLAIN, batch_size=3, seed=0, num_steps=6) as batches:
        assert sum(int(batch.is_real.sum()) for batch in batches) == 2 * 3  # two epochs
    # Named once, counted twice; max_pixels is generous here.
    assert batches.report.count("truncated") == 2
    assert len(batches.report.examples("truncated")) == 1


def test_the_report_covers_exactly_the_batches_handed_out() -> None:
    source = one_image(image=noise(24, 32)[..., 0])
    with train_batches(source, PLAIN, batch_size=2, seed=0, num_steps=10) as batches:
        for taken in range(1, 4):
            next(batches)
            assert batches.report.count("grayscale") == 2 * taken
        assert len(batches) == 10


def test_crowds_and_difficult_objects() -> None:
    boxes = [[1, 1, 9, 9], [2, 2, 12, 12], [3, 3, 15, 15]]
    source = one_image(make_record(0, boxes=boxes, crowd=(0,), difficult=(1,)))
    for use_difficult, labels in (True, [1, 2]), (False, [2]):
        config = changed(PLAIN, use_difficult=use_difficult)
        truth = train(source, config, num_steps=1, batch_size=1)[0].ground_truth
        assert truth.labels[truth.valid].tolist() == labels


def test_of_too_many_objects_the_largest_stay() -> None:
    sides = [3, 9, 4, 8, 5, 7, 6, 2]
    record = make_record(0, boxes=[[1, 1, 1 + side, 1 + side] for side in sides])
    source = one_image(record)
    with train_batches(source, PLAIN, batch_size=1, seed=0, num_steps=1) as batches:
        truth = next(batches).ground_truth
        assert batches.report.count("too_many_objects") == 3
    with eval_batches(source, PLAIN, batch_size=1) as batches:
        next(batches)
        assert not batches.report.findings  # an evaluation counts them all
    assert truth.valid.all()
    widths = (truth.boxes[0, :, 2] - truth.boxes[0, :, 0]) / 2  # the image is doubled
    np.testing.assert_allclose(widths, [9, 8, 5, 7, 6])
    assert truth.labels[0].tolist() == [record.labels[i] for i in (1, 3, 4, 5, 6)]


def test_cropped_objects_are_counted() -> None:
    source = one_image(make_record(0, boxes=[[0, 0, 6, 6], [26, 18, 32, 24]]))
    with train_batches(source, CONFIG, batch_size=4, seed=0, num_steps=8) as batches:
        kept = sum(int(batch.ground_truth.valid.sum()) for batch in batches)
        lost = batches.report.count("cropped_away")
    assert kept + lost == 2 * 4 * 8
    assert lost > 0


def test_images_without_objects() -> None:
    records = [make_record(0, boxes=[]), make_record(1)]
    source = FakeSource(records, [encode(noise(24, 32))] * 2)
    for batch in train(source, changed(CONFIG, keep_empty=True), batch_size=2):
        assert batch.is_real.all()
        np.testing.assert_array_equal(batch.ground_truth.valid.sum(axis=1), batch.record_index)
    empty = FakeSource(records[:1], source.files[:1])
    for batch in evaluate(empty, batch_size=1):
        assert batch.is_real.all()
        assert not batch.ground_truth.valid.any()
    with pytest.raises(DataError, match="keep_empty"):
        train(empty)


def test_an_unforeseen_failure_names_the_file_and_does_not_hang() -> None:
    source = mixed_source(4, 0)
    source.files[2] = RuntimeError("broken index")
    with (
        train_batches(source, PLAIN, batch_size=2, seed=0, num_steps=50) as batches,
        pytest.raises(LoaderError, match="image2: RuntimeError: broken index"),
    ):
        for _ in batches:
            pass
    assert list(batches) == []  # over, not hanging


def test_closing_stops_the_threads() -> None:
    def running() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if "grain" in thread.name}

    before = running()
    for is_closed in True, False:  # or forgotten
        batches = train_batches(SOURCE, CONFIG, batch_size=4, seed=0, num_steps=10**9)
        next(batches)
        assert running() - before
        if is_closed:
            batches.close()
            batches.close()
            with pytest.raises(StopIteration):
                next(batches)
        del batches
        deadline = time.monotonic() + 20
        while running() - before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not running() - before


def test_a_program_that_never_closes_still_ends() -> None:
    code = (
        "from tests.data.test_loader import CONFIG, SOURCE, train_batches\n"
        "options = {'batch_size': 4, 'seed': 0, 'num_steps': 10**9}\n"
        "closed = train_batches(SOURCE, CONFIG, **options)\n"
        "next(closed)\n"
        "closed.close()\n"
        "batches = train_batches(SOURCE, CONFIG, **options)\n"
        "next(batches)\n"
        "print('done', flush=True)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, timeout=60, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


def test_wrong_arguments_fail_at_once() -> None:
    with pytest.raises(ValueError, match="batch_size is 4; it must be a multiple"):
        train(process_count=3)


def test_fingerprint_follows_what_matters() -> None:
    def fingerprint(
        source: Any = SOURCE, batch_size: int = 4, seed: int = 0, **options: Any
    ) -> str:
        config = changed(CONFIG, **options)
        return order_fingerprint(source, config, batch_size=batch_size, seed=seed)

    base = fingerprint()
    assert len(base) == 64
    assert int(base, 16)
    assert base == fingerprint() == fingerprint(num_threads=1) == fingerprint(root="elsewhere")
    changes = {
        "short_sides": (48, 32), "max_side": 80, "stride": 32, "max_objects": 6,
        "max_pixels": 10**6, "use_difficult": False, "keep_empty": True, "resize": "warp",
        "augment": AugmentConfig(), "seed": 1, "batch_size": 8, "source": mixed_source(8, 4),
    }  # fmt: skip
    # What came later is no part of it while it is off: such runs go on, with the same batches.
    assert base == "471f4e267843355184c7625493b4e6fc60ef5b03117063f9fccaae62e8fa46b4"
    assert sum(float(b.ground_truth.boxes.sum()) for b in train(num_steps=9)) == pytest.approx(
        3240.97, abs=0.01
    )
    others = [fingerprint(**{name: value}) for name, value in changes.items()]
    for name, value in (
        ("mosaic", 0.5),
        ("large_scale_jitter", (1.0, 2.0)),
        ("mixup", 1.0),
        ("erase", 0.1),
    ):
        others.append(fingerprint(augment=dataclasses.replace(SSD, **{name: value})))
    assert len({base, *others}) == len(others) + 1
