"""The training order: complete, balanced, random access, the same on every process."""

from collections import Counter

import numpy as np
import pytest

from harmonic_jax.config import DataConfig
from harmonic_jax.data.plan import TrainPlan, local_rows, plan_evaluation
from harmonic_jax.data.records import DataError, Record
from tests.data.fake_source import make_record

CONFIG = DataConfig(short_sides=(64, 80, 96), max_side=160)


def make_records(landscape: int, portrait: int) -> list[Record]:
    sizes = [(24, 32)] * landscape + [(32, 24)] * portrait
    order = np.random.default_rng(0).permutation(len(sizes))
    return [
        make_record(i, height=sizes[k][0], width=sizes[k][1], boxes=[[1, 1, 9, 9]])
        for i, k in enumerate(order)
    ]


def simulate(records: list[Record], plan: TrainPlan, batch_size: int, epochs: int) -> None:
    """Walks the steps in order and keeps the books by hand."""
    is_portrait = [record.height > record.width for record in records]
    seen: Counter[int] = Counter()
    step = 0
    for epoch in range(epochs):
        assert plan.first_step(epoch) == step
        while step < plan.first_step(epoch + 1):
            batch = plan[step]
            assert plan.epoch(step) == epoch
            assert len(batch.indices) == batch_size
            assert {is_portrait[i] for i in batch.indices} == {batch.bucket == 1}
            seen.update(batch.indices.tolist())
            step += 1
        for bucket in (False, True):
            members = [i for i in range(len(records)) if is_portrait[i] == bucket]
            total = sum(seen[i] for i in members)
            # All that is missing of epoch + 1 rounds waits in one unfinished batch.
            assert (epoch + 1) * len(members) - total == (epoch + 1) * len(members) % batch_size
            if len(members) >= batch_size:
                assert {seen[i] for i in members} <= {epoch, epoch + 1}


@pytest.mark.parametrize(
    ("landscape", "portrait", "batch_size"), [(23, 9, 4), (0, 7, 3), (10, 3, 8), (3, 2, 16)]
)
def test_every_image_once_an_epoch(landscape: int, portrait: int, batch_size: int) -> None:
    records = make_records(landscape, portrait)
    plan = TrainPlan(records, CONFIG, batch_size=batch_size, seed=3)
    assert plan.num_images == len(records)
    simulate(records, plan, batch_size, epochs=12)


def reference_order(
    records: list[Record], *, batch_size: int, seed: int, epochs: int
) -> list[list[int]]:
    """The rule told as queues: fill them once an epoch, take out whole batches, shuffle these."""
    members = [
        [i for i, record in enumerate(records) if (record.height > record.width) == is_portrait]
        for is_portrait in (False, True)
    ]
    queues: list[list[int]] = [[], []]
    steps = []
    for epoch in range(epochs):
        batches = []
        for bucket, queue in enumerate(queues):
            rng = np.random.default_rng((seed, epoch, bucket, 1))
            queue += rng.permutation(members[bucket]).tolist()
            while len(queue) >= batch_size:
                batches.append(queue[:batch_size])
                del queue[:batch_size]
        order = np.random.default_rng((seed, epoch, 0, 2)).permutation(len(batches))
        steps += [batches[i] for i in order]
    return steps


@pytest.mark.parametrize(("landscape", "portrait"), [(23, 9), (5, 2), (3, 30)])
def test_the_order_is_that_of_queues(landscape: int, portrait: int) -> None:
    """A change here breaks the resumption of runs: raise the loader's PIPELINE_VERSION with it."""
    records = make_records(landscape, portrait)
    expected = reference_order(records, batch_size=4, seed=7, epochs=20)
    plan = TrainPlan(records, CONFIG, batch_size=4, seed=7)
    assert [plan[step].indices.tolist() for step in range(len(expected))] == expected


def test_random_access_is_iteration() -> None:
    records = make_records(13, 6)
    plan = TrainPlan(records, CONFIG, batch_size=4, seed=5)
    in_order = [plan[step] for step in range(60)]
    for step in np.random.default_rng(0).permutation(60):
        alone = TrainPlan(records, CONFIG, batch_size=4, seed=5)[int(step)]
        np.testing.assert_array_equal(alone.indices, in_order[step].indices)
        assert alone[:2] == in_order[step][:2]


def test_a_far_step_costs_no_more_than_a_near_one() -> None:
    records = make_records(50, 14)
    plan = TrainPlan(records, CONFIG, batch_size=16, seed=0)
    step = 10**9
    assert plan.first_step(plan.epoch(step)) <= step < plan.first_step(plan.epoch(step) + 1)
    assert len(set(plan[step].indices.tolist())) == 16


def test_short_sides_are_drawn_per_step() -> None:
    plan = TrainPlan(make_records(30, 0), CONFIG, batch_size=2, seed=0)
    drawn = Counter(plan[step].short_side for step in range(600))
    assert set(drawn) == {64, 80, 96}
    assert min(drawn.values()) > 150


def test_warp_and_square_shapes_have_one_bucket() -> None:
    records = make_records(5, 4)
    for config in (DataConfig(resize="warp"), DataConfig(short_sides=(96,), max_side=96)):
        assert len(config.buckets) == 1
        plan = TrainPlan(records, config, batch_size=3, seed=0)
        indices = np.concatenate([plan[step].indices for step in range(3)])
        assert sorted(indices.tolist()) == list(range(9))
    square = [make_record(0, height=32, width=32)]  # goes with the landscapes
    assert TrainPlan(square, CONFIG, batch_size=1, seed=0)[0].bucket == 0


def test_stretched_images_have_a_bucket_for_each_side() -> None:
    """Evaluation's first; a batch has one side; every image comes once an epoch all the same."""
    config = DataConfig(resize="warp", short_sides=(64, 90, 128, 96), stride=32)
    assert config.buckets == ((96, 96), (128, 128), (64, 64))
    records = make_records(30, 20)
    assert config.bucket_of(200, 100) == (96, 96)
    plan = TrainPlan(records, config, batch_size=5, seed=0)
    assert plan.buckets_used(1) == (0, 1, 2)
    steps = [plan[step] for step in range(200)]
    assert all(config.buckets[s.bucket] == config.square(s.short_side) for s in steps)
    assert set(Counter(s.short_side for s in steps)) == {64, 90, 128, 96}
    epoch = np.concatenate([s.indices for s in steps[:10]])
    assert sorted(epoch.tolist()) == list(range(50))
    assert {s.bucket for s in plan_evaluation(records, config, batch_size=5)} == {0}


def test_images_without_trainable_objects_are_left_out() -> None:
    two = [[1, 1, 5, 5], [2, 2, 9, 9]]
    records = [
        make_record(0, boxes=[]),
        make_record(1, boxes=two, crowd=(0, 1)),
        make_record(2, boxes=two, difficult=(0, 1)),
        make_record(3, boxes=two, crowd=(0,), difficult=(1,)),
        make_record(4, boxes=two, crowd=(0,)),
    ]

    def trained(**options: bool) -> set[int]:
        plan = TrainPlan(records, DataConfig(**options), batch_size=1, seed=0)
        return {int(plan[step].indices[0]) for step in range(plan.num_images)}

    assert trained() == {2, 3, 4}
    assert trained(use_difficult=False) == {4}
    assert trained(keep_empty=True) == {0, 1, 2, 3, 4}


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match=r"none of the 1 training images.*keep_empty"):
        TrainPlan([make_record(0, boxes=[])], CONFIG, batch_size=1, seed=0)
    with pytest.raises(IndexError, match="step is -1"):
        TrainPlan(make_records(1, 0), CONFIG, batch_size=1, seed=0)[-1]


@pytest.mark.parametrize(("landscape", "portrait"), [(9, 5), (8, 0), (0, 3), (1, 1)])
def test_evaluation_sees_every_image_once(landscape: int, portrait: int) -> None:
    records = make_records(landscape, portrait)
    plan = plan_evaluation(records, CONFIG, batch_size=4)
    assert len(plan) == -(-landscape // 4) + -(-portrait // 4)
    indices = np.concatenate([batch.indices for batch in plan])
    assert sorted(indices[indices >= 0].tolist()) == list(range(len(records)))
    assert (indices < 0).sum() == len(plan) * 4 - len(records)
    assert all(batch.short_side == 96 for batch in plan)
    for batch in plan:
        real = batch.indices[batch.indices >= 0]
        assert {records[i].height > records[i].width for i in real} == {batch.bucket == 1}
        assert sorted(real.tolist()) == real.tolist()


def test_local_rows_cut_the_batch() -> None:
    pieces = [local_rows(12, process_index=p, process_count=4) for p in range(4)]
    assert [row for piece in pieces for row in piece] == list(range(12))
    with pytest.raises(ValueError, match="batch_size is 6; it must be a multiple"):
        local_rows(6, process_index=0, process_count=4)
