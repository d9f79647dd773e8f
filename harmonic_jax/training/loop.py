"""The training loop: the only one."""

import contextlib
import dataclasses

import jax

from harmonic_jax.config import Config
from harmonic_jax.data.loader import BatchIterator, train_batches
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.sample import num_blank
from harmonic_jax.training.compilation import compile_programs, run_programs
from harmonic_jax.training.departure import exit_on_lost_process
from harmonic_jax.training.evaluation import Evaluation, report_of_all
from harmonic_jax.training.initialise import check_masks, match_sources, start_or_resume
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.processes import is_primary, run_on_all
from harmonic_jax.training.run import Run, open_run
from harmonic_jax.training.run_folder import RunFolder
from harmonic_jax.training.sharding import check_batch_sizes, data_mesh, put_batch, replicated
from harmonic_jax.training.state import TrainState, build_detector
from harmonic_jax.training.step import make_train_step
from harmonic_jax.training.trace import StepTrace
from harmonic_jax.training.watchdog import process_watchdog


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Where a run stands when the loop returns."""

    step: int
    state: TrainState
    stopped_by: str | None  # what asked, SIGTERM say; None when all steps are done
    evaluation: Evaluation | None  # of the last step, None if it was stopped before


def train(
    config: Config, run_dir: RunFolder, train_source: DetectionSource, eval_source: DetectionSource
) -> TrainResult:
    """Trains, or goes on training, the configured detector until its last step.

    All randomness is a function of the seed and the step, and a checkpoint holds everything else
    that changes; so a run that was killed and started again ends with the same parameters as one
    that was not. All processes call it with the same arguments; process 0 writes.

    Args:
      config: the experiment.
      run_dir: where checkpoints and logs go; a checkpoint found there is continued.
      train_source: images and objects to train on.
      eval_source: images and objects to evaluate on; its classes must be among those of the
        training data, in any order.

    Raises:
      ConfigError: the run found was made with another config or other data, or the evaluation
        data has a class that the training data lack.
      NonFiniteLossError: names the step and the terms.
      ProcessFailedError: of several processes, one failed.
    """
    settings = config.train
    mesh = data_mesh()
    check_batch_sizes(config, mesh)
    check_masks(config)
    labels, class_notes = match_sources(train_source, eval_source)
    detector = build_detector(config, len(train_source.class_names))
    optimizer = make_optimizer(config.optim, steps=settings.steps, batch_size=settings.batch_size)
    train_step = make_train_step(detector, optimizer, mesh)
    watchdog = process_watchdog(settings.step_timeout)
    with watchdog, contextlib.ExitStack() as stack:
        with watchdog.paused():  # opening, restoring and compiling take the time they take
            run = open_run(
                config,
                run_dir,
                detector,
                mesh,
                train_source,
                eval_source,
                labels,
                watchdog,
                stack,
            )
            state, notes = start_or_resume(
                detector,
                optimizer,
                run.checkpoints,
                run.metadata,
                train_source.class_names,
                sharding=replicated(mesh),
            )
            start = int(state.step)
            batches = stack.enter_context(_batches(config, train_source, start))
            run_on_all(lambda: run.start_logs(run_dir, start, stack))
            for note in class_notes + notes:
                run.progress.message(note)
            programs = run_programs(
                config,
                mesh,
                state,
                train_step=train_step,
                predict_step=run.predict_step,
                train_source=train_source,
                eval_source=eval_source,
            )
            run_on_all(lambda: compile_programs(programs, run.progress, stops=run.stops_alone))
        stack.enter_context(
            exit_on_lost_process()
        )  # last: it ends the process before all others close

        if run.is_stopping(start):
            return _stopped(run, start, state)
        # A run that was stopped within an evaluation owes it; a finished one reports again.
        evaluation = run.evaluate(state) if start and run.evaluates_at(start) else None
        if run.is_evaluation_stopped:
            return _stopped(run, start, state)
        profiled = settings.profile if is_primary() else None
        trace = StepTrace(run_dir.path / "profile", profiled, run.progress.message)
        for step in range(start + 1, settings.steps + 1):
            trace.before(step)
            with run.log.waiting_for_data():
                batch = next(batches)
            run.tell_skipped(batches.report)
            state, metrics = train_step(state, put_batch(batch, mesh))
            run.log.add(step, metrics)
            run.watchdog.feed(f"step {step - 1}")  # whose metrics have now been read
            trace.after(step, run.log.flush)
            is_evaluating, is_stopping = run.evaluates_at(step), run.is_stopping(step)
            if is_evaluating or is_stopping or step % settings.checkpoint_every == 0:
                run.save(step, state)
            if is_evaluating:
                evaluation = None if is_stopping else run.evaluate(state)
            if is_stopping or run.is_evaluation_stopped:
                return _stopped(run, step, state)
        loaded = report_of_all(batches.report)
        run.progress.message(f"images as they were loaded:\n{loaded.format()}")
        if num_blank(loaded) == (settings.steps - start) * settings.batch_size > 0:
            run.progress.message("no training image could be decoded: nothing was learned")
    return TrainResult(settings.steps, state, None, evaluation)


def _stopped(run: Run, step: int, state: TrainState) -> TrainResult:
    where = f"saved step {step}; start again to go on" if step else "stopped before the first step"
    run.progress.message(f"{run.stop.name}: {where}")
    return TrainResult(step, state, run.stop.name, None)


def _batches(config: Config, source: DetectionSource, start: int) -> BatchIterator:
    return train_batches(
        source,
        config.data,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        start_step=start,
        num_steps=config.train.steps,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
