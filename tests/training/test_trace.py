"""The profiler's trace of a few steps: what fails in it costs no training."""

from pathlib import Path

import pytest

from harmonic_jax.training.trace import StepTrace


def trace_steps(folder: Path) -> tuple[list[str], list[int]]:
    """What was said in the steps 1 to 5, and for which of them the device was waited for."""
    said: list[str] = []
    waited: list[int] = []
    trace = StepTrace(folder, (2, 3), said.append)
    for step in range(1, 6):
        trace.before(step)
        trace.after(step, lambda: waited.append(step))  # noqa: B023
    return said, waited


def test_the_steps_are_traced(tmp_path: Path) -> None:
    assert trace_steps(tmp_path / "profile") == ([], [3])
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("where", ["profile", "profile/folder"])
def test_what_fails_is_said(tmp_path: Path, where: str) -> None:
    (tmp_path / "profile").write_text("a file")
    (line,), _ = trace_steps(tmp_path / where)
    assert line.startswith(f"{tmp_path / where}: the steps are not traced: ")
    assert "\n" not in line


def test_nothing_is_traced_unless_asked(tmp_path: Path) -> None:
    trace = StepTrace(tmp_path / "profile", None, print)
    for step in range(3):
        trace.before(step)
        trace.after(step, lambda: None)
    assert list(tmp_path.iterdir()) == []
