"""Bounds of the step time against arithmetic done by hand."""

import pytest

from harmonic_jax.pods.chips import CHIPS, Slice, TopologyError, parse_slice, scaling_slices
from harmonic_jax.pods.hlo import Collective
from harmonic_jax.pods.roofline import (
    Work,
    collective_bytes,
    roofline,
    scale_fixed_batch,
    scale_fixed_share,
    work_at,
)

WORK = Work(
    images=4,
    flops=1.97e12,
    memory_bytes=8.19e9,
    reduced_bytes=144e6,
    other_wire_bytes=0.0,
    peak_bytes=8e9,
)


def test_each_unit_alone() -> None:
    bound = roofline(WORK, parse_slice("v5e:16x16"))
    assert bound.compute == pytest.approx(0.01)  # 1.97 of 197 TFLOP
    assert bound.memory == pytest.approx(0.01)  # 8.19 of 819 GB
    # 255/256 of twice the gradient over 4 links of 45 GB/s: both axes of a whole pod are rings.
    assert bound.interconnect == pytest.approx(2 * 255 / 256 * 144e6 / 180e9)
    assert bound.step == pytest.approx(0.01)
    assert bound.images_per_second_per_chip == pytest.approx(400)
    assert bound.images_per_second == pytest.approx(400 * 256)


def test_the_slowest_unit_decides() -> None:
    slow = Work(4, 1e9, 1e6, reduced_bytes=18e9, other_wire_bytes=0.0, peak_bytes=0.0)
    bound = roofline(slow, parse_slice("v5e:16x16"))
    assert bound.bound == "interconnect"
    assert bound.step == bound.interconnect


@pytest.mark.parametrize(
    ("name", "links"),
    [
        ("v5e:1x1", 0),
        ("v5e:2x2", 2),  # two lines
        ("v5e:8x8", 2),
        ("v5e:8x16", 3),  # a line and a ring
        ("v5e:16x16", 4),
        ("v4:2x2x1", 2),
        ("v4:2x2x4", 3),
        ("v4:4x4x4", 6),
        ("v4:4x4x8", 6),
    ],
)
def test_links_of_a_slice(name: str, links: int) -> None:
    assert parse_slice(name).all_reduce_rate == links * 45e9


def test_several_slices_exchange_parts_over_the_network() -> None:
    pod = Slice(CHIPS["v5e"], (16, 16), num_slices=4)
    within = 2 * 255 / 256 * 144e6 / 180e9
    between = 2 * 3 / 4 * (144e6 / 256) / 3.125e9
    assert roofline(WORK, pod).interconnect == pytest.approx(within + between)


def test_what_collectives_add_up_to() -> None:
    collectives = [
        Collective("all-reduce", 100, 4, 3, ("f32",), 1, ""),
        Collective("all-gather", 400, 4, 2, ("f32",), 1, ""),
    ]
    assert collective_bytes(collectives) == (300.0, 2 * 300.0)


def test_other_shares_lie_on_the_line_through_two() -> None:
    half = Work(2, 1.0e12, 4.6e9, 144e6, 0.0, 5e9)
    one = work_at(1, [WORK, half])
    assert one.flops == pytest.approx(1.97e12 - 3 * 0.485e12)
    assert one.memory_bytes == pytest.approx(8.19e9 - 3 * 1.795e9)
    assert one.peak_bytes == pytest.approx(3.5e9)
    assert one.reduced_bytes == 144e6
    assert work_at(2, [WORK]).flops == pytest.approx(0.985e12)


def test_scaling_from_4_to_1024_chips() -> None:
    fixed_share = scale_fixed_share(CHIPS["v5e"], [WORK])
    assert [row.pod.num_chips for row in fixed_share] == [4, 16, 64, 256, 1024]
    assert [row.pod.name for row in fixed_share][-2:] == ["v5e:16x16", "4 x v5e:16x16"]
    assert {row.roofline.compute for row in fixed_share} == {fixed_share[0].roofline.compute}
    fixed_batch = scale_fixed_batch(CHIPS["v4"], [WORK], 256)
    assert [(row.pod.num_chips, row.work.images) for row in fixed_batch] == [
        (4, 64), (16, 16), (64, 4), (256, 1),
    ]  # fmt: skip
    assert not fixed_batch[0].fits
    assert fixed_batch[2].fits
    assert [s.topology for s in scaling_slices(CHIPS["v5p"])][-1] == "v5p:8x8x16"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e:32x32", "at most 16x16"),
        ("v5e:2x2x2", "v5e has 2 axes"),
        ("v4:2x2", "v4 has 3 axes"),
        ("v5e:3x4", "1 or even"),
        ("v5e:0x4", "v5e has 2 axes"),
        ("v7:2x2", "the chip one of v4, v5e, v5p, v6e"),
        ("nonsense", "must be CHIP:AxB"),
    ],
)
def test_slices_that_do_not_exist_are_refused(name: str, words: str) -> None:
    with pytest.raises(TopologyError, match=words):
        parse_slice(name)
