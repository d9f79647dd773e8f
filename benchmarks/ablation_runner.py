"""Runs a grid: one train.py after another, or several on cores of their own; each evaluated."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from benchmarks.ablation_grid import Grid, GridError, Run
from benchmarks.ablation_measure import measure, training_curve
from benchmarks.ablation_results import VOC_METRICS, Row, read_results
from harmonic_jax.cli.configs import config_from_args
from harmonic_jax.training.config_json import config_to_json
from harmonic_jax.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
CODE = ("harmonic_jax", "train.py", "eval.py")
DIVERGED = "not finite"
_PATIENCE = 60.0  # seconds a stopped run has to save its step


class Stopped(GridError):
    """A run that was ended because the grid was."""


def run_grid(grid: Grid, out: Path, results: Path, *, jobs: int, names: str = "*") -> None:
    """Runs what the results do not have yet, and adds a line for each run that ends.

    Args:
      grid: the runs.
      out: the folder of runs and logs.
      results: the file of lines; other grids may have lines of their own in it.
      jobs: runs at a time; on a processor each has its own cores.
      names: a pattern of the names of the runs that are wanted now.

    Raises:
      GridError: no run has such a name, the code has changes that are not committed, results are
        there of other code or other configs, or a run failed for another reason than divergence.
    """
    out.mkdir(parents=True, exist_ok=True)
    results.parent.mkdir(parents=True, exist_ok=True)
    revision, slots = code_revision(), core_slots(jobs)
    device = device_name(len(slots[0]))
    known = {row["name"]: row for row in read_results(results)}
    runs = [(run, config_of(run)) for run in grid.runs(names)]
    for run, config in runs:
        if run.name in known:
            check_same(known[run.name], config, revision, results)
    waiting = [item for item in runs if item[0].name not in known]
    console, lock = Console(), threading.Lock()
    console.print(f"{len(runs) - len(waiting)} of {len(runs)} runs are there; {device}")
    with _display(console) as progress:
        total = progress.add_task("runs", total=len(runs), completed=len(runs) - len(waiting))
        worker = _Worker(out, progress)

        def work(item: tuple[Run, dict[str, Any]]) -> None:
            run, config = item
            cores = slots.pop()
            try:
                row = worker.run(run, cores)
            finally:
                slots.append(cores)
            row |= {"revision": revision, "config": config, "device": device}
            line = (json.dumps(row) + "\n").encode()
            with lock, results.open("ab", buffering=0) as file:  # one write: a whole line, or none
                file.write(line)
            console.print(f"{run.name}: {_summary(row)}")
            progress.advance(total)

        _work_on(waiting, work, worker, jobs)


def _work_on(waiting: Sequence[Any], work: Any, worker: "_Worker", jobs: int) -> None:
    """Works on all items, some at a time; the first failure or signal ends the others."""
    with ThreadPoolExecutor(jobs) as pool:
        futures: list[Future[None]] = []
        try:  # a signal may come while some of them are running already
            futures.extend(pool.submit(work, item) for item in waiting)
            for future in futures:
                future.result()
        except BaseException:
            worker.stop.set()
            pool.shutdown(cancel_futures=True)
            # What failed first may be behind the one that was waited for, ended because of it.
            errors = [future.exception() for future in futures if not future.cancelled()]
            for error in errors:
                if error is not None and not isinstance(error, Stopped):
                    raise error from None
            raise


def code_revision() -> str:
    """The git hashes of what a run executes; documentation and benchmarks may change.

    Raises:
      GridError: the code has changes that no revision holds.
    """

    def git(*args: str) -> str:
        result = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
        if result.returncode:
            raise GridError(f"git {' '.join(args)}: {result.stderr.strip()}")
        return result.stdout.strip()

    changed = git("status", "--porcelain", "--", *CODE, "configs")
    if changed:
        raise GridError(f"commit these first, so that results have a revision: {changed.split()}")
    return "-".join(git("rev-parse", f"HEAD:{path}")[:12] for path in CODE)


def device_name(num_cores: int) -> str:
    """The device the runs will find, asked in a process that leaves it free again."""
    code = "import jax; d = jax.devices(); print(len(d), d[0].device_kind)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    count, kind = result.stdout.strip().split(maxsplit=1)
    return f"{num_cores} of {os.cpu_count()} cores" if kind == "cpu" else f"{count} x {kind}"


def core_slots(jobs: int) -> list[set[int]]:
    """The cores of each job; all of them where there are more jobs than cores, or one job."""
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // jobs
    if jobs == 1 or each == 0:
        return [set(cores) for _ in range(jobs)]
    return [set(cores[i * each : (i + 1) * each]) for i in range(jobs)]


def config_of(run: Run) -> dict[str, Any]:
    """The config of a run as JSON, without the folder that it is in."""
    args = [str(ROOT / run.args[0]), *run.args[1:], "--train.seed", str(run.seed)]
    config = config_from_args(args)
    found: dict[str, Any] = json.loads(json.dumps(config_to_json(config)))
    del found["run_dir"]
    # Where the data lies is no part of an experiment.
    found["data"].pop("root", None)
    return found


def check_same(row: Row, config: dict[str, Any], revision: str, results: Path) -> None:
    """Refuses to go on beside a result of other code or another config."""
    if row["revision"] != revision:
        raise GridError(
            f"{results} has {row['name']} of the code {row['revision']}, and the code is now "
            f"{revision}; take another --results, or go back to that revision"
        )
    different = sorted(key for key in config if row["config"].get(key) != config[key])
    if different:
        raise GridError(
            f"{results} has {row['name']} with another config (its {different}); "
            "take another --results, or rename the arm"
        )


@dataclasses.dataclass
class _Worker:
    """Runs the programs of one run after another; `stop` ends them all."""

    out: Path
    progress: Progress
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    def run(self, run: Run, cores: set[int]) -> Row:
        folder = self.out / "runs" / run.name
        row: Row = {"name": run.name, "case": run.case, "arm": run.arm, "seed": run.seed}
        was_started = folder.exists()
        start = time.monotonic()
        train = ["train.py", *run.args, "--train.seed", str(run.seed), "--run-dir", str(folder)]
        status, text = self._call(train, run.name, cores, folder)
        # Of a run that was done in several parts the time is not known.
        row["seconds"] = None if was_started else round(time.monotonic() - start, 1)
        if status and DIVERGED not in text:
            raise GridError(f"{run.name} failed ({self._log(run.name)}): {text[-300:]}")
        row["curve"] = training_curve(RunFolder(folder).read_log())
        if status:
            return row | {"status": "diverged", "message": text.splitlines()[-1]}
        report = folder / "consistency"
        command = ["eval.py", str(folder), "--last", "--report", str(report), "--resamples", "0"]
        status, text = self._call(command, f"{run.name}.eval", cores, None)
        if status:
            raise GridError(f"{run.name} cannot be evaluated: {text[-300:]}")
        measured = measure(report)
        last = RunFolder(folder).read_log()[-1]  # of the evaluation that ends every training
        measured["metrics"] |= {name: last[name] for name in VOC_METRICS if name in last}
        return row | {"status": "done"} | measured

    def _log(self, name: str) -> Path:
        return self.out / "logs" / f"{name}.log"

    def _call(
        self, command: list[str], name: str, cores: set[int], folder: Path | None
    ) -> tuple[int, str]:
        """Runs a program of this project on some cores; its status and what it said."""
        if self.stop.is_set():
            raise Stopped(name)
        log = self._log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        task = self.progress.add_task(name, total=None)
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
            )
            os.sched_setaffinity(process.pid, cores)
            try:
                while process.poll() is None and not self.stop.wait(0.5):
                    self._show(task, folder)
            finally:
                self.progress.remove_task(task)
                _end(process)
        if self.stop.is_set():
            raise Stopped(name)
        return process.returncode, log.read_text(errors="replace").strip()

    def _show(self, task: TaskID, folder: Path | None) -> None:
        """How far the run is, by its own log."""
        if folder is None or not RunFolder(folder).log.exists():
            return
        try:
            rows = RunFolder(folder).read_log()
            steps = RunFolder(folder).read_config().train.steps
        except (ValueError, OSError):  # being written
            return
        if rows:
            self.progress.update(task, completed=rows[-1]["step"], total=steps)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks a program that still runs to end: a training saves its step, and goes on from there."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _summary(row: Row) -> str:
    if row["status"] != "done":
        return f"{row['status']}: {row['message']}"
    return f"AP {row['metrics']['AP']:.3f}, AP50 {row['metrics']['AP50']:.3f}"


def _display(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), console=console)
