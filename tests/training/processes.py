"""Starts the processes of one run on this machine: gloo over loopback, some devices each."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent.parent


@dataclasses.dataclass
class Started:
    """One process. Its output goes to files: a pipe that nobody reads would stop it."""

    process: subprocess.Popen
    _out: IO[bytes]
    _err: IO[bytes]

    @property
    def out(self) -> str:
        return _text(self._out)

    @property
    def err(self) -> str:
        return _text(self._err)

    @property
    def report(self) -> dict:
        """Its last line, as JSON."""
        assert self.process.returncode is not None, self.err
        return json.loads(self.out.splitlines()[-1])

    def end(self, *, seconds: float = 240) -> int:
        """Waits for the end, and returns the status."""
        return self.process.wait(timeout=seconds)


@contextmanager
def start(*command: object, count: int, devices: int = 1) -> Iterator[list[Started]]:
    """The processes, in order; what still runs at the end of the block is killed.

    `{process}` in a word of the command stands for the number of the process.
    """
    # One device is that of the test's own process, and so are its programs.
    flags = os.environ["XLA_FLAGS"]
    if devices > 1:
        flags += f" --xla_force_host_platform_device_count={devices}"
    with ExitStack() as stack:
        port = stack.enter_context(reserved_port())
        started = []
        for index in range(count):
            out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            words = [str(word).replace("{process}", str(index)) for word in command]
            process = subprocess.Popen(
                [sys.executable, *words, *_join(port, count, index)],
                cwd=ROOT,
                env=os.environ | {"COLUMNS": "200", "XLA_FLAGS": flags},
                stdout=out,
                stderr=err,
            )
            stack.callback(_kill, process)
            started.append(Started(process, out, err))
        yield started


def run(*command: object, count: int, devices: int = 1, status: int = 0) -> list[dict]:
    """What all processes report at the end; fails where one has another status."""
    with start(*command, count=count, devices=devices) as started:
        for one in started:
            assert one.end() == status, one.err[-3000:]
        return [one.report for one in started]


def wait_until(is_so: Callable[[], bool], started: list[Started], *, seconds: float = 120) -> None:
    """Waits for something that running processes do."""
    deadline = time.monotonic() + seconds
    while not is_so():
        for one in started:
            assert one.process.poll() is None, one.err[-3000:]
        assert time.monotonic() < deadline, started[0].err[-3000:]
        time.sleep(0.02)


def wait_for_step(started: list[Started], run_dir: Path, step: int) -> None:
    """Until the log of process 0 has the step; it is behind the training by one step."""
    log = run_dir / "metrics.jsonl"
    wait_until(lambda: log.exists() and f'"step": {step},' in log.read_text(), started)


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that no other program is given while the block lasts.

    It stays bound here, but nobody listens: JAX's server binds it again, with the same option.
    """
    with socket.socket(socket.AF_INET6) as holder:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("::", 0))
        yield holder.getsockname()[1]


def _join(port: int, count: int, index: int) -> tuple[str, ...]:
    if count == 1:
        return ()
    coordinator = ("--coordinator", f"127.0.0.1:{port}")
    return (*coordinator, "--num-processes", str(count), "--process-id", str(index))


def _kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def _text(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
