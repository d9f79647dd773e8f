"""Names from anywhere are printed as they are, and steer nothing."""

import io
import sys

import pytest

from harmonic_jax.cli.command import complain, run_command
from harmonic_jax.terminal import (
    Terminal,
    column_width,
    padded,
    prepare_terminal,
    printable,
    track,
)

NASTY = ["[/red]", "[bold]x[/b].png", ":smile:", "a" * 300, "\x1b[2Jcleared", "\udcff.jpg"]


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("is_terminal", [True, False])
def test_names_are_printed_whole_and_without_escape_sequences(name: str, is_terminal: bool) -> None:
    output = io.StringIO()
    console = Terminal(file=output, force_terminal=is_terminal, width=40)
    console.print(f"written: {name}")
    shown = name.replace("\x1b", "\\x1b").replace("\udcff", "\\udcff")
    assert output.getvalue() == f"written: {shown}\n"


@pytest.mark.parametrize("name", NASTY)
def test_a_bar_takes_any_description(name: str) -> None:
    console = Terminal(file=io.StringIO(), force_terminal=True, width=80)
    assert list(track(range(3), 3, name, console=console)) == [0, 1, 2]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_goes_to_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding))
    prepare_terminal()
    Terminal().print("螺丝 \udcff")
    sys.stdout.flush()
    known = "螺丝" if encoding == "utf-8" else "\\u87ba\\u4e1d"
    assert raw.getvalue().decode(encoding) == f"{known} \\udcff\n"


def test_an_error_is_one_line_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise FileNotFoundError(2, "No such file or directory", "[/red]\x1b.json")

    assert run_command(body) == 1
    assert capsys.readouterr().err == "error: [/red]\\x1b.json: No such file or directory\n"
    complain("plain")
    assert capsys.readouterr().err == "error: plain\n"


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_columns_are_as_wide_as_they_are_drawn() -> None:
    names = ["cat", "齿轮", "a\x1bb", "x" * 300]
    width = column_width(names, heading="class")
    assert width == 40
    assert [padded(name, width) for name in names] == [
        f"cat{' ' * 37}", f"齿轮{' ' * 36}", f"a\\x1bb{' ' * 34}", "x" * 300,
    ]  # fmt: skip


@pytest.mark.parametrize("unseen", "\u00ad\u200b\u2060\ufeff\u200f")
def test_what_shows_nothing_is_an_escape(unseen: str) -> None:
    assert printable(f"car{unseen}") == "car" + unseen.encode("ascii", "backslashreplace").decode()
    joined = "\U0001f469\u200d\U0001f52c"  # one emoji, and two without what joins them
    assert printable(joined) == joined
