"""What is open while a run lasts, and the few things done with several of them at once."""

import contextlib
import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from harmonic_jax.config import Config, ConfigError
from harmonic_jax.data.loader import order_fingerprint
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.report import DataReport
from harmonic_jax.data.sample import is_blank, num_blank
from harmonic_jax.training.checkpoint import CheckpointError, CheckpointStore
from harmonic_jax.training.classes import MatchedPredictions
from harmonic_jax.training.config_json import differences, listed
from harmonic_jax.training.evaluation import Evaluation, EvaluationStopped, evaluate
from harmonic_jax.training.interrupt import StopSignal
from harmonic_jax.training.log import MetricsWriter, open_writer
from harmonic_jax.training.metadata import check_same_everywhere, config_of, run_metadata
from harmonic_jax.training.processes import is_primary, run_on_all, run_on_primary
from harmonic_jax.training.progress import TrainProgress
from harmonic_jax.training.report import prediction_grid
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.state import Detector, TrainState
from harmonic_jax.training.step import PredictStep, make_predict_step
from harmonic_jax.training.train_log import TrainLog
from harmonic_jax.training.watchdog import Watchdog


@dataclasses.dataclass
class Run:
    """What `open_run` opened, and after `start_logs` also the log and the display."""

    config: Config
    mesh: Mesh
    eval_source: DetectionSource
    labels: np.ndarray  # of the training data's classes in the evaluation data
    predict_step: PredictStep
    checkpoints: CheckpointStore
    best: CheckpointStore
    stop: StopSignal
    watchdog: Watchdog
    metadata: dict[str, Any]
    writer: MetricsWriter = dataclasses.field(init=False)
    progress: TrainProgress = dataclasses.field(init=False)
    log: TrainLog = dataclasses.field(init=False)
    evaluated: set[int] = dataclasses.field(default_factory=set)
    is_evaluation_stopped: bool = False
    is_ap_missing: bool = False
    is_skip_told: bool = False

    def start_logs(self, run_dir: RunFolder, start: int, stack: contextlib.ExitStack) -> None:
        """Opens log and display behind step `start`, once the state says where that is."""
        settings = self.config.train
        self.writer = stack.enter_context(
            open_writer(run_dir.path, resume_step=start, is_primary=is_primary())
        )
        if is_primary():
            self.evaluated = {row["step"] for row in run_dir.read_log() if row["kind"] == "eval"}
        progress = TrainProgress(
            settings.steps,
            images_per_step=settings.batch_size,
            start_step=start,
            enabled=is_primary(),
        )
        self.progress = stack.enter_context(progress)
        self.log = TrainLog(settings.log_every, self.writer, self.progress)

    def evaluates_at(self, step: int) -> bool:
        every = self.config.train.eval_every
        return step == self.config.train.steps or (every > 0 and step % every == 0)

    def is_stopping(self, step: int) -> bool:
        """Whether a signal came to any process; all ask at the same steps."""
        return self.is_evaluation_stopped or self._asked_to_stop(step)

    def _asked_to_stop(self, count: int) -> bool:
        """Several processes ask each other, an all-gather, so only now and then."""
        asks = jax.process_count() == 1 or count % self.config.train.log_every == 0
        return asks and self.stop.requested_anywhere()

    def stops_alone(self) -> bool:
        """Whether this process was asked to stop, and has nobody to agree with."""
        return jax.process_count() == 1 and self.stop.requested

    def tell_skipped(self, loaded: DataReport) -> None:
        """Says once, at the first, that a training image cannot be decoded."""
        if self.is_skip_told or not num_blank(loaded):
            return
        self.is_skip_told = True
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

    def evaluate(self, state: TrainState) -> Evaluation | None:
        """Evaluates, logs, and keeps the best; None if a signal came meanwhile.

        The state has been saved: it is on the disk before anything here can fail.
        """
        self.checkpoints.wait()
        step, variables = int(state.step), state.for_evaluation
        batch_numbers = itertools.count(1)
        try:
            with self.progress.paused():
                evaluation = evaluate(
                    MatchedPredictions(self.predict_step, self.labels),
                    variables,
                    self.eval_source,
                    self.config,
                    self.mesh,
                    track=self.progress.track,
                    should_stop=lambda: self._asked_to_stop(next(batch_numbers)),
                    watchdog=self.watchdog,
                )
        except EvaluationStopped:
            self.is_evaluation_stopped = True
            return None
        metrics = evaluation.metrics
        shown = (f"{name} {_score(metrics[name])}" for name in ("AP", "AP50", "AP75"))
        self.progress.message(f"step {step}: {'  '.join(shown)}")
        if evaluation.warning:
            self.progress.message(evaluation.warning)
        if is_primary() and step not in self.evaluated:
            self.evaluated.add(step)
            skipped = {"skipped_images": float(evaluation.num_skipped)}
            self.writer.write(step, "eval", metrics | skipped)
            picture = prediction_grid(
                evaluation, self.eval_source, max_pixels=self.config.data.max_pixels
            )
            self.writer.write_images(step, {"predictions": picture})
        self.best.wait()  # the one that is being written counts too
        # -1 is that of no objects; NaN would compare with nothing.
        ap = metrics["AP"] if metrics["AP"] >= 0 else -1.0
        if run_on_primary(lambda: self._is_best(step, ap)):
            self.best.save(step, variables, self.metadata | {"AP": ap})
        self.watchdog.feed(f"the evaluation of step {step}")
        return evaluation

    def _is_best(self, step: int, ap: float) -> bool:
        """Whether no evaluation has found more; of those that found as much, the newest counts."""
        if ap < 0 and not self.is_ap_missing:
            self.is_ap_missing = True
            self.progress.message(
                f"{self.eval_source.name} has no objects to find: no step is better than another, "
                "and best/ holds the newest one that was evaluated"
            )
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


def open_run(
    config: Config,
    run_dir: RunFolder,
    detector: Detector,
    mesh: Mesh,
    train_source: DetectionSource,
    eval_source: DetectionSource,
    labels: np.ndarray,
    watchdog: Watchdog,
    stack: contextlib.ExitStack,
) -> Run:
    """Opens the folders and the signals of a run until `stack` closes; all processes together.

    Raises:
      ConfigError: the processes were started with different configs or data, or the best
        variables are another run's.
      ProcessFailedError: of several processes, one failed.
    """
    settings = config.train
    checkpoints = CheckpointStore(run_dir.checkpoints, keep=settings.keep_checkpoints)
    best = CheckpointStore(run_dir.best, keep=1)
    for store in (checkpoints, best):
        stack.enter_context(store)
        run_on_all(store.claim)  # a folder that cannot be written shows now, not after an hour
    run_on_primary(lambda: _check_best(best, config))
    fingerprint = order_fingerprint(
        train_source, config.data, batch_size=settings.batch_size, seed=settings.seed
    )
    metadata = run_metadata(config, train_source, fingerprint)
    check_same_everywhere(metadata)
    return Run(
        config=config,
        mesh=mesh,
        eval_source=eval_source,
        labels=labels,
        predict_step=make_predict_step(detector, mesh),
        checkpoints=checkpoints,
        best=best,
        stop=stack.enter_context(StopSignal()),
        watchdog=watchdog,
        metadata=metadata,
    )


def _check_best(best: CheckpointStore, config: Config) -> None:
    """Refuses to replace what another run left, behind a link say."""
    try:
        found = best.read_metadata()
    except CheckpointError:  # none, or damaged: the next evaluation says so
        return
    listing = listed(differences(config_of(found, where=best.directory), config), "there", "now")
    if listing:
        raise ConfigError(
            f"{best.directory} was made with another config ({listing}): put it elsewhere, or "
            "choose another folder with --run-dir"
        )
