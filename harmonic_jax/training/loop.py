"""The training loop: the only one."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Self

import jax
from jax.sharding import Mesh

from harmonic_jax.config import Config, ConfigError, MaskRCNNConfig
from harmonic_jax.data.loader import order_fingerprint, train_batches
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.sample import is_blank, num_blank
from harmonic_jax.structures import Batch
from harmonic_jax.terminal import Terminal
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.compilation import compile_programs, run_programs
from harmonic_jax.training.evaluation import (
    Evaluation,
    MatchedPredictions,
    evaluate,
    match_sources,
    report_of_all,
)
from harmonic_jax.training.initialise import start_or_resume
from harmonic_jax.training.log import MetricsWriter, StepTrace, TrainLog, TrainProgress
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.processes import is_primary, run_on_all, run_on_primary
from harmonic_jax.training.results import prediction_grid
from harmonic_jax.training.run_folder import (
    RunFolder,
    check_same_on_all,
    run_metadata,
)
from harmonic_jax.training.sharding import check_batch_size, data_mesh, put_batch, replicated
from harmonic_jax.training.state import TrainState, build_detector
from harmonic_jax.training.step import PredictStep, make_predict_step, make_train_step
from harmonic_jax.training.watchdog import StopSignal, exit_on_lost_process, process_watchdog


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Where a run stands when the loop returns."""

    step: int
    state: TrainState
    stopped_by: str | None  # what asked, SIGTERM say; None when all steps are done
    evaluation: Evaluation | None  # of the last step, None if it was stopped before


def train(
    config: Config, folder: RunFolder, train_source: DetectionSource, eval_source: DetectionSource
) -> TrainResult:
    """Trains, or goes on training, the configured detector until its last step.

    All randomness is a function of the seed and the step, and a checkpoint holds everything else
    that changes; so a run that was killed and started again ends with the same parameters as one
    that was not. All processes call it with the same arguments; process 0 writes.

    Raises:
      ConfigError: the run found was made with another config or other data, or the evaluation
        data has a class that the training data lack.
      NonFiniteLossError: names the step and the terms.
      ProcessFailedError: of several processes, one failed.
    """
    settings, mesh = config.train, data_mesh()
    check_batch_size(config, mesh)
    # Not a matter of Config: what is trained on masks may be evaluated on data without any.
    if isinstance(config.model, MaskRCNNConfig) and not config.data.masks:
        raise ConfigError(
            "data.masks is False; it must be True to train Mask R-CNN, on data that has masks"
        )
    labels, class_notes = match_sources(train_source, eval_source)
    detector = build_detector(config, len(train_source.class_names))
    optimizer = make_optimizer(config.optim, settings)
    train_step = make_train_step(detector, optimizer, mesh)
    predict_step = make_predict_step(detector, mesh)
    with TrainRun(config, folder, eval_source) as run:
        with run.watchdog.paused():  # opening, restoring and compiling take the time they take
            run.open(train_source)
            state, notes = start_or_resume(
                detector, optimizer, run.checkpoints, run.metadata, sharding=replicated(mesh)
            )
            start = int(state.step)
            batches = run.enter_context(
                train_batches(
                    train_source,
                    config.data,
                    batch_size=settings.batch_size,
                    seed=settings.seed,
                    start_step=start,
                    num_steps=settings.steps,
                    process_index=jax.process_index(),
                    process_count=jax.process_count(),
                )
            )
            run_on_all(lambda: run.open_logs(start))
            for note in class_notes + notes:
                run.progress.message(note)
            programs = run_programs(
                config, mesh, state, (train_step, train_source), (predict_step, eval_source)
            )
            run_on_all(lambda: compile_programs(programs, run.progress, stops=run.stops_alone))
        run.enter_context(exit_on_lost_process())  # last: before all others close
        predictions = MatchedPredictions(predict_step, labels)

        evaluation = None
        # A run that was stopped within an evaluation owes it; a finished one reports again.
        if not run.is_stopping(start) and start > 0 and run.evaluates_at(start):
            evaluation = run.evaluate(predictions, state, mesh)
        steps = settings.profile if settings.profile and is_primary() else (0, 0)
        trace = run.enter_context(StepTrace(folder.path / "profile", steps, run.progress.message))
        for step in range(start + 1, settings.steps + 1):
            if run.is_stopped:
                break
            trace.begin(step)
            with run.log.waiting_for_data():
                batch = next(batches)
            run.tell_skipped(batches.report)
            state, metrics = train_step(state, put_batch(batch, mesh))
            run.log.add(step, metrics)
            run.watchdog.feed(f"step {step - 1}")  # whose metrics have now been read
            if step == steps[1]:
                run.log.flush()  # waits for the device
            is_evaluating = run.evaluates_at(step)
            if run.is_stopping(step) or is_evaluating or step % settings.checkpoint_every == 0:
                run.save(step, state)
            trace.end(step)
            if is_evaluating and not run.is_stopped:
                evaluation = run.evaluate(predictions, state, mesh)
        if run.is_stopped:
            return run.stopped(state)
        loaded = report_of_all(batches.report)
        run.progress.message(f"images as they were loaded:\n{loaded.format()}")
        if num_blank(loaded) == (settings.steps - start) * settings.batch_size > 0:
            run.progress.message("no training image could be decoded: nothing was learned")
    return TrainResult(settings.steps, state, None, evaluation)


class _StoppedError(Exception):
    """An evaluation is given up, since a signal came."""


class TrainRun(contextlib.ExitStack):
    """A training that goes on: its checkpoints, log, display, signals and watchdog.

    What is opened closes with the `with` block, in the opposite order.
    """

    def __init__(self, config: Config, folder: RunFolder, eval_source: DetectionSource) -> None:
        super().__init__()
        self.config = config
        self.folder = folder
        self.eval_source = eval_source
        self.watchdog = process_watchdog(config.train.step_timeout)
        self.checkpoints = CheckpointStore(folder.checkpoints, keep=config.train.keep_checkpoints)
        self.best = CheckpointStore(folder.best, keep=1)
        self.signals = StopSignal()
        self.is_stopped = False
        self._is_skip_told = False

    def __enter__(self) -> Self:
        self.enter_context(self.watchdog)
        return self

    def open(self, train_source: DetectionSource) -> None:
        """Opens checkpoints and signals; all processes together, with the same config and data."""
        for store in (self.checkpoints, self.best):
            self.enter_context(store)
            run_on_all(store.claim)  # a folder that cannot be written shows now, not after an hour
        settings = self.config.train
        fingerprint = order_fingerprint(
            train_source, self.config.data, batch_size=settings.batch_size, seed=settings.seed
        )
        self.metadata = run_metadata(self.config, train_source, fingerprint)
        check_same_on_all(self.metadata)
        self.enter_context(self.signals)

    def open_logs(self, start: int) -> None:
        """Opens log and display behind step `start`, once the state says where that is."""
        settings = self.config.train
        self.writer = self.enter_context(
            MetricsWriter(self.folder.path, start_step=start, enabled=is_primary())
        )
        self.progress = self.enter_context(
            TrainProgress(
                settings.steps,
                images_per_step=settings.batch_size,
                start_step=start,
                console=Terminal(quiet=not is_primary(), lossy=True),
            )
        )
        self.log = TrainLog(
            settings.log_every, self.writer, self.progress, last_step=settings.steps
        )
        rows = self.folder.read_log() if is_primary() else []
        self._evaluated = {row["step"] for row in rows if row["kind"] == "eval"}

    def evaluates_at(self, step: int) -> bool:
        every = self.config.train.eval_every
        return step == self.config.train.steps or (every > 0 and step % every == 0)

    def is_stopping(self, count: int) -> bool:
        """Whether a signal came to any process; all ask at the same steps, or batches.

        Several processes ask each other, an all-gather, so only now and then.
        """
        asks = jax.process_count() == 1 or count % self.config.train.log_every == 0
        self.is_stopped = self.is_stopped or (asks and self.signals.requested_anywhere())
        return self.is_stopped

    def stops_alone(self) -> bool:
        """Whether this process was asked to stop, and has nobody to agree with."""
        return jax.process_count() == 1 and self.signals.requested

    def stopped(self, state: TrainState) -> TrainResult:
        step = int(state.step)
        where = f"saved step {step}; start again to go on"
        where = where if step else "stopped before the first step"
        self.progress.message(f"{self.signals.name}: {where}")
        return TrainResult(step, state, self.signals.name, None)

    def tell_skipped(self, loaded: DataReport) -> None:
        """Says once, at the first, that a training image cannot be decoded."""
        if self._is_skip_told or not num_blank(loaded):
            return
        self._is_skip_told = True
        (example,) = next(f.examples[:1] for f in loaded.findings.values() if is_blank(f))
        self.progress.message(
            f"a training image could not be decoded and is left out: {example} (all are counted at "
            "the end; check-data names them)"
        )

    def save(self, step: int, state: TrainState) -> None:
        """Begins to save; a loss or a state that is not finite is never saved."""
        self.log.flush()
        self.checkpoints.save(step, state, self.metadata)
        self.watchdog.feed(f"step {step} and its checkpoint")

    def evaluate(
        self, predict_step: PredictStep, state: TrainState, mesh: Mesh
    ) -> Evaluation | None:
        """Evaluates, logs, and keeps the best; None if a signal came meanwhile.

        The state has been saved: it is on the disk before anything here can fail.
        """
        self.checkpoints.wait()
        step, variables = int(state.step), state.for_evaluation
        try:
            with self.progress.paused():
                evaluation = evaluate(
                    predict_step,
                    variables,
                    self.eval_source,
                    self.config,
                    mesh,
                    track=self._track_evaluation,
                    watchdog=self.watchdog,
                )
        except _StoppedError:
            return None
        metrics = evaluation.metrics
        shown = (f"{name} {_score(metrics[name])}" for name in ("AP", "AP50", "AP75"))
        self.progress.message(f"step {step}: {'  '.join(shown)}")
        if evaluation.warning:
            self.progress.message(evaluation.warning)
        if is_primary() and step not in self._evaluated:
            skipped = {"skipped_images": float(evaluation.num_skipped)}
            self.writer.write(step, "eval", metrics | skipped)
            max_pixels = self.config.data.max_pixels
            picture = prediction_grid(evaluation, self.eval_source, max_pixels=max_pixels)
            self.writer.write_image(step, "predictions", picture)
        self.best.wait()  # the one that is being written counts too
        ap = metrics["AP"] if metrics["AP"] >= 0 else -1.0  # NaN would compare with nothing
        if run_on_primary(lambda: self._is_best(step, ap)):
            self.best.save(step, variables, self.metadata | {"AP": ap})
        self.watchdog.feed(f"the evaluation of step {step}")
        return evaluation

    def _track_evaluation(
        self, batches: Iterable[Batch], total: int, description: str
    ) -> Iterator[Batch]:
        tracked = self.progress.track(batches, total, description)
        for number, batch in enumerate(tracked, start=1):
            if self.is_stopping(number):
                raise _StoppedError
            yield batch

    def _is_best(self, step: int, ap: float) -> bool:
        """Whether no AP was higher; of those with the same, the newest is the best."""
        latest = self.best.latest_step()
        if latest is None:
            return True
        try:
            best = self.best.read_metadata(verify=True).get("AP")
        except CheckpointError as error:
            self.progress.message(f"{error}. It counts as none; the one of step {step} replaces it")
            return True
        return not isinstance(best, int | float) or (ap, step) > (best, latest)


def _score(value: float) -> str:
    """As the table has it: a dash where there is no object to find."""
    return f"{value:.4f}" if value >= 0 else "-"
