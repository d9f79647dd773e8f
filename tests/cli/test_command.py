"""How commands end: by signals, without an output, without memory, on a full disk; and scripts."""

import errno
import io
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

import harmonic_jax.__main__
from harmonic_jax.cli.command import run_command
from harmonic_jax.terminal import Terminal, log_lines, prepare_terminal
from harmonic_jax.training.log import TrainProgress
from tests.cli.conftest import ROOT

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_command_in_a_line(number: signal.Signals, capsys) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]

    def body() -> int:
        signal.raise_signal(number)
        raise AssertionError

    assert run_command(body) == 3
    assert capsys.readouterr().err == f"error: stopped by {number.name}\n"
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_signal_while_a_command_tidies_up_is_a_line_too(capsys) -> None:
    def body() -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
        return 0

    assert run_command(body) == 3
    assert capsys.readouterr().err == "error: stopped by SIGINT\n"


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    """As `nohup` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_command(lambda: signal.raise_signal(signal.SIGHUP) or 0) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def broken_output(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Sends standard output to a pipe that nobody reads, or to a full device, for one command."""

    def run(kind: str, body: Callable[[], int] = lambda: run_command(print_a_lot)) -> int:
        if kind == "pipe":
            reader, writer = os.pipe()
            os.close(reader)
        else:
            writer = os.open("/dev/full", os.O_WRONLY)
        with open(writer, "w", closefd=False) as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            status = body()
            stream.write("what Python flushes at its end")
        os.close(writer)
        return status

    return run


def print_a_lot() -> int:
    Terminal().print("x" * 100)
    return 0


def test_an_output_that_takes_nothing_more(broken_output, capsys) -> None:
    assert broken_output("pipe") == 1
    assert broken_output("pipe", lambda: harmonic_jax.__main__.main(["--help"])) == 0
    assert capsys.readouterr().err == ""
    if Path("/dev/full").exists():
        assert broken_output("device") == 1
        error = capsys.readouterr().err
        assert error == "error: standard output: No space left on device\n"


def test_there_is_no_output_at_all(monkeypatch) -> None:
    """`>&-`: what Python makes of a process that was started without."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert run_command(print_a_lot) == 0

    def fail() -> int:
        raise OSError(errno.ENOENT, "No such file", "x")

    assert run_command(fail) == 1


def test_a_training_goes_on_without_its_display() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    for stream in (Full(), io.StringIO()):
        console = Terminal(file=stream, lossy=True)
        with TrainProgress(2, images_per_step=1, console=console) as progress:
            progress.message("begun")
            for step in progress.track(range(1, 3), 2, "steps"):
                progress.update(step, {"loss": 0.5})
    assert "loss 0.5" in stream.getvalue()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9.1 TiB for an array"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
    ],
)
def test_memory_that_is_not_there(error: Exception, capsys) -> None:
    def body() -> int:
        raise error

    assert run_command(body) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: there is not enough memory")
    assert str(error).splitlines()[0] in shown
    assert shown.count("\n") == 1


def test_other_errors_of_jax_keep_their_traceback() -> None:
    def body() -> int:
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        run_command(body)


def test_what_is_logged_is_lines(capsys) -> None:
    """Whatever handler a library left, and however long the stack of an error is."""
    left = logging.StreamHandler()
    logging.getLogger().addHandler(left)
    try:
        prepare_terminal()
        assert left not in logging.getLogger().handlers
        logging.getLogger("a.library").warning("%s: odd", "\x1b[31m.jpg")
        try:
            raise OSError("the disk is full")
        except OSError:
            logging.getLogger("a.library").exception("not saved")
        logging.getLogger("a.library").info("nothing")
        expected = "\\x1b[31m.jpg: odd\nnot saved: OSError: the disk is full\n"
        assert capsys.readouterr().err == expected
        log_lines(logging.ERROR, prefix="process 1: ")
        logging.getLogger("a.library").warning("nothing")
        logging.getLogger("a.library").error("an error")
        assert capsys.readouterr().err == "process 1: an error\n"
    finally:
        prepare_terminal()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Runs a script as `harmonic-jax` does; its exit status."""

    def run(*words: str) -> object:
        monkeypatch.setattr(sys, "argv", ["harmonic_jax", *words])
        before = [signal.getsignal(number) for number in SIGNALS]
        try:
            with pytest.raises(SystemExit) as end:
                harmonic_jax.__main__.run_script()
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)
        return end.value.code

    return run


def test_a_script_ends_with_the_status_of_its_command(script, capsys) -> None:
    assert script() == 2
    shown = capsys.readouterr().err
    assert "usage: harmonic-jax COMMAND" in shown
    assert "check-data SPEC" in shown
    assert script("evel") == 2
    assert capsys.readouterr().err == "error: there is no command 'evel'; near it: eval\n"
    assert script("check-data", "nonsense") == 1
    assert capsys.readouterr().err.startswith("error: 'nonsense' must be coco:DIR")


def test_the_current_folder_was_deleted(script, tmp_path, monkeypatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert str(script("train")).startswith("error: the current folder is not there any more")


def test_nothing_large_is_imported_for_the_list_of_commands() -> None:
    code = (
        "import sys; from harmonic_jax.__main__ import main\n"
        "assert main(['--help']) == main(['--version']) == 0\n"
        "assert not {'jax', 'numpy', 'rich', 'tyro'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"harmonic-jax {harmonic_jax.__version__}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_commands_and_options(shell: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        harmonic_jax.__main__.main(["--completion", shell])
    assert end.value.code in (0, None)
    script = capsys.readouterr().out
    for word in ("export-weights", "--score-threshold", "--optim.learning-rate", "--topology"):
        assert word in script


def test_a_signal_before_the_command_listens() -> None:
    """While everything is imported, which takes seconds."""
    code = (
        "import signal, sys, harmonic_jax.__main__ as script\n"
        "script.main = lambda argv: signal.raise_signal(signal.SIGTERM)\n"
        "script.run_script('train')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "error: stopped by SIGTERM\n")


COUNT_FAULTS = """
import resource
import jax, jax.numpy as jnp
from harmonic_jax.cli.command import prepare_processor

prepare_processor()
x, step = jnp.ones(2**23), jax.jit(lambda x: x * 2.0)
for count in range(12):
    if count == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a C library with no such options")
@pytest.mark.parametrize("settings", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_a_step_gets_the_memory_of_the_last_one(settings: dict[str, str]) -> None:
    """Eight steps of 32 MB: 65,000 pages where they are asked for anew, as in an environment with
    settings of its own; one array may be, once."""
    own = ("MALLOC_", "GLIBC_TUNABLES")
    environment = {name: os.environ[name] for name in os.environ if not name.startswith(own)}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS],
        env=environment | settings,
        capture_output=True,
        check=True,
    )
    assert (int(done.stdout) > 40_000) == bool(settings)
