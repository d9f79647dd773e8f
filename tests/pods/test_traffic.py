"""Bytes between HBM and the chip, against a small program counted by hand."""

from harmonic_jax.pods.traffic import hbm_bytes

PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=1

%fused (a: f32[8], b: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = f32[8]{0} parameter(1)
  ROOT %inside = f32[8]{0} multiply(%a, %b)
}

%body (s: f32[4]) -> f32[4] {
  %s = f32[4]{0} parameter(0)
  ROOT %twice = f32[4]{0:T(128)} add(%s, %s)
}

ENTRY %main (x: f32[8], y: f32[16]) -> f32[8] {
  %x = f32[8]{0:T(128)} parameter(0)
  %y = f32[16]{0:T(128)} parameter(1)
  %near = (f32[8]{0:T(128)S(1)}, f32[8]{0:T(128)}, u32[]{:S(2)}) copy-start(%x)
  %x-near = f32[8]{0:T(128)S(1)} copy-done(%near)
  %part = ((f32[16]{0:T(128)(2,1)}), f32[8]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%y), slice={[0:8]}
  %part-near = f32[8]{0:T(128)S(1)} slice-done(%part)
  %product = f32[8]{0:T(128)S(1)} fusion(%x-near, %part-near), kind=kLoop, calls=%fused
  %out = f32[8]{0:T(128)} add(%product, %x), metadata={op_name="jit(step)/add"}
  %place = f32[8]{0:T(128)} custom-call(), custom_call_target="AllocateBuffer"
  %loop = f32[4]{0} while(%z), condition=%less, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %same = f32[8]{0:T(128)} bitcast(%out)
}
"""  # noqa: E501


def test_what_stays_on_the_chip_is_not_counted() -> None:
    copied = 32  # x is read once, to the chip's memory
    sliced = 32  # half of y
    fused = 0  # from the chip's memory to it
    added = 32 + 32  # x is read again, the sum written
    looped = 3 * (2 * 16 + 16)
    assert hbm_bytes(PROGRAM) == copied + sliced + fused + added + looped
