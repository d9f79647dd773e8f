"""Collectives out of HLO text, against what is written in it, counted by hand."""

import pytest

from harmonic_jax.pods.collectives import Collective, HloError, find_collectives

SYNCHRONOUS = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

ENTRY %main (p0: f32[8,4], p1: bf16[3]) -> (f32[8,4], bf16[3]) {
  %p0 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %p1 = bf16[3]{0:T(256)} parameter(1)
  %both = (f32[8,4]{1,0:T(8,128)S(1)}, /*index=1*/bf16[3]{0:T(256)}) all-reduce(%p0, %p1), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, to_apply=%sum, metadata={op_name="jit(step)/psum" stack_frame_id=10}, backend_config={"strategy":"StrategyRing"}
  %parts = f32[1,4]{1,0} reduce-scatter(%p0), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%sum
  %whole = f32[8,4]{1,0} all-gather(%parts), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
  %shifted = f32[8,4]{1,0} collective-permute(%p0), channel_id=4, source_target_pairs={{0,1},{1,0}}
  %mixed = (f32[2,4]{1,0}, f32[2,4]{1,0}) all-to-all(%p0, %p0), channel_id=5, replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %count = s32[] all-reduce(%n), channel_id=6, replica_groups={}, to_apply=%sum
  ROOT %out = (f32[8,4], bf16[3]) tuple(%p0, %p1)
}
"""  # noqa: E501


def test_kinds_sizes_and_groups() -> None:
    both, parts, whole, shifted, mixed, count = find_collectives(SYNCHRONOUS)
    assert both == Collective("all-reduce", 128 + 6, 8, 1, ("bf16", "f32"), 2, "jit(step)/psum")
    assert (parts.kind, parts.num_bytes, parts.group_size) == ("reduce-scatter", 8 * 16, 8)
    assert (whole.kind, whole.num_bytes, whole.group_size) == ("all-gather", 128, 4)
    assert (shifted.kind, shifted.num_bytes) == ("collective-permute", 128)
    assert (mixed.kind, mixed.num_bytes, mixed.group_size) == ("all-to-all", 64, 2)
    assert (count.num_bytes, count.group_size, count.dtypes) == (4, 8, ("s32",))


@pytest.mark.parametrize(
    ("notation", "size"),
    [
        ("mesh['data'=8] {'data'}", 8),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a','b':(1)2}", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
    ],
)
def test_other_notations_of_groups(notation: str, size: int) -> None:
    hlo = SYNCHRONOUS.replace("replica_groups={{0,1,2,3,4,5,6,7}}", f"replica_groups={notation}")
    assert find_collectives(hlo)[0].group_size == size


def test_bytes_sent_in_rings() -> None:
    both, parts, whole, shifted, mixed, _ = find_collectives(SYNCHRONOUS)
    assert both.sent_bytes == pytest.approx(2 * 7 / 8 * 134)
    assert parts.sent_bytes == 7 * 16  # each passes on a part seven times
    assert whole.sent_bytes == 3 * 32
    assert shifted.sent_bytes == 128
    assert mixed.sent_bytes == 32


ASYNCHRONOUS = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%wrapped (p: f32[16]) -> f32[4] {
  %p = f32[16]{0} parameter(0)
  ROOT %scatter = f32[4]{0} reduce-scatter(%p), channel_id=4, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%sum
}

ENTRY %main (p0: f32[16]) -> f32[16] {
  %p0 = f32[16]{0} parameter(0)
  %start = f32[16]{0} all-reduce-start(f32[16]{0} %p0), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%sum
  %gather-start = (f32[4]{0}, f32[16]{0}) all-gather-start(%q), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}
  %shift-start = (f32[16]{0}, f32[16]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p0), channel_id=3, source_target_pairs={{0,1},{1,2}}
  %scatter-start = ((f32[16]{0}), f32[4]{0}, s32[]{:S(2)}) async-start(%p0), calls=%wrapped
  %done = f32[16]{0} all-reduce-done(%start)
  %gathered = f32[16]{0} all-gather-done(%gather-start)
  %shifted = f32[16]{0} collective-permute-done(%shift-start)
  %scattered = f32[4]{0} async-done(%scatter-start), calls=%wrapped
  ROOT %out = f32[16]{0} add(%done, %gathered)
}
"""  # noqa: E501


def test_the_two_halves_of_an_asynchronous_one_count_once() -> None:
    found = {c.kind: c for c in find_collectives(ASYNCHRONOUS)}
    assert len(find_collectives(ASYNCHRONOUS)) == len(found) == 4
    assert found["all-reduce"].sent_bytes == 2 * 3 * 16
    assert found["all-gather"].sent_bytes == 3 * 16
    assert found["collective-permute"].num_bytes == 64
    assert found["reduce-scatter"].num_bytes == 64
    assert {c.num_runs for c in found.values()} == {1}


SEVERAL_AT_ONCE = """\
HloModule jit_step, is_scheduled=true, num_partitions=2

ENTRY %main (p0: f32[4], p1: bf16[2]) -> f32[8] {
  %start = ((f32[4]{0:T(128)}, bf16[2]{0:T(256)(2,1)}), (f32[8]{0:T(128)}, bf16[4]{0:T(256)(2,1)})) all-gather-start(%p0, %p1), channel_id=1, replica_groups=[1,2]<=[2], dimensions={0}
  %done = (f32[8]{0:T(128)}, bf16[4]{0:T(256)(2,1)}) all-gather-done(%start)
  ROOT %out = f32[8]{0} get-tuple-element(%done), index=0
}
"""  # noqa: E501


def test_types_of_several_arrays_with_tiles() -> None:
    (gather,) = find_collectives(SEVERAL_AT_ONCE)
    assert (gather.num_bytes, gather.num_arrays, gather.dtypes) == (40, 2, ("bf16", "f32"))


LOOP = """\
HloModule jit_step, num_partitions=2

%body (s: (s32[], f32[6])) -> (s32[], f32[6]) {
  %mean = f32[6]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}, to_apply=%sum
}

%condition (s: (s32[], f32[6])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%unused (x: f32[6]) -> f32[6] {
  ROOT %never = f32[6]{0} all-reduce(%x), channel_id=2, replica_groups={{0,1}}, to_apply=%sum
}

ENTRY %main (p: f32[6]) -> f32[6] {
  %loop = (s32[], f32[6]{0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
  ROOT %out = f32[6]{0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_a_loop_repeats_its_collectives() -> None:
    (mean,) = find_collectives(LOOP)
    assert (mean.num_bytes, mean.num_runs) == (24, 5)


def test_an_unknown_notation_is_refused_rather_than_guessed() -> None:
    strange = SYNCHRONOUS.replace("replica_groups=[1,8]<=[8]", "replica_groups=everyone")
    with pytest.raises(HloError, match="replica groups"):
        find_collectives(strange)
