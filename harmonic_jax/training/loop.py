"""The training loop: the only one."""

import dataclasses
import math
from collections import deque
from pathlib import Path

import jax
import optax
from jax.sharding import Mesh

from harmonic_jax.config import Config, ConfigError
from harmonic_jax.data.loader import order_fingerprint, train_batches
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.pretrained.resnet import load_backbone
from harmonic_jax.training.checkpoint import CheckpointStore
from harmonic_jax.training.evaluation import Evaluation, evaluate
from harmonic_jax.training.interrupt import StopSignal
from harmonic_jax.training.optimizer import make_optimizer
from harmonic_jax.training.progress import TrainProgress
from harmonic_jax.training.report import prediction_grid
from harmonic_jax.training.run_dir import RunDir, check_resumable, run_metadata
from harmonic_jax.training.sharding import check_divides, data_mesh, put_batch, replicated
from harmonic_jax.training.state import (
    Detector,
    TrainState,
    Variables,
    abstract_state,
    build_detector,
    init_state,
    init_variables,
)
from harmonic_jax.training.step import Metrics, make_predict_step, make_train_step
from harmonic_jax.training.writer import MetricsWriter, open_writer


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last checkpoint is from before."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Where a run stands when the loop returns."""

    step: int
    stopped_by: str | None  # name of the signal, None when all steps are done
    evaluation: Evaluation | None  # of the last step, None if it was stopped before


def train(
    config: Config, run_dir: RunDir, train_source: DetectionSource, eval_source: DetectionSource
) -> TrainResult:
    """Trains, or goes on training, the configured detector until its last step.

    All randomness is a function of the seed and the step, and a checkpoint holds everything else
    that changes; so a run that was killed and started again ends with the same parameters as one
    that was not.

    Args:
      config: the experiment.
      run_dir: where checkpoints and logs go; a checkpoint found there is continued.
      train_source: images and objects to train on.
      eval_source: images and objects to evaluate on; its classes must be the same.

    Raises:
      ConfigError: the run found was made with another config or other data.
      NonFiniteLossError: names the step and the terms.
    """
    settings = config.train
    mesh = data_mesh()
    check_divides(mesh, "train.batch_size", settings.batch_size, parts=config.optim.accumulate)
    detector = build_detector(config, len(train_source.class_names))
    fingerprint = order_fingerprint(
        train_source, config.data, batch_size=settings.batch_size, seed=settings.seed
    )
    metadata = run_metadata(config, train_source, fingerprint)
    is_primary = jax.process_index() == 0

    with (
        CheckpointStore(run_dir.checkpoints, keep=settings.keep_checkpoints) as checkpoints,
        CheckpointStore(run_dir.best, keep=1) as best,
        StopSignal() as stop,
    ):
        optimizer = make_optimizer(config.optim, steps=settings.steps)
        checkpoints.claim()  # a folder that cannot be written shows now, not after an hour
        state = _start_or_resume(detector, optimizer, mesh, checkpoints, metadata)
        start = int(state.step)
        batches = train_batches(
            train_source,
            config.data,
            batch_size=settings.batch_size,
            seed=settings.seed,
            start_step=start,
            num_steps=settings.steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        train_step = make_train_step(detector, optimizer, mesh)
        predict_step = make_predict_step(detector, mesh)
        log = _Log(settings.log_every)
        evaluation = None
        with (
            batches,
            open_writer(run_dir.path, resume_step=start, is_primary=is_primary) as writer,
            TrainProgress(
                settings.steps,
                images_per_step=settings.batch_size,
                start_step=start,
                enabled=is_primary,
            ) as progress,
        ):
            for step in range(start + 1, settings.steps + 1):
                _profile(settings.profile, step, run_dir.path)
                state, metrics = train_step(state, put_batch(next(batches), mesh))
                log.add(step, metrics, writer, progress)

                is_last = step == settings.steps
                if is_last or (settings.eval_every and step % settings.eval_every == 0):
                    log.flush(writer, progress)
                    with progress.paused():
                        evaluation = evaluate(
                            predict_step,
                            state.for_evaluation,
                            eval_source,
                            config,
                            mesh,
                            track=progress.track,
                        )
                    _log_evaluation(step, evaluation, eval_source, config, writer, progress)
                    _save_if_best(best, step, state.for_evaluation, evaluation, metadata)
                if is_last or stop.requested or step % settings.checkpoint_every == 0:
                    log.flush(writer, progress)  # a state that is not finite is never saved
                    checkpoints.save(step, state, metadata)
                if stop.requested and not is_last:
                    progress.message(f"{stop.name}: saved step {step}; start again to continue")
                    return TrainResult(step, stop.name, None)
            progress.message(f"images as they were loaded: {batches.report.format()}")
            if evaluation is None:  # a finished run, started again
                evaluation = evaluate(
                    predict_step,
                    state.for_evaluation,
                    eval_source,
                    config,
                    mesh,
                    track=progress.track,
                )
        return TrainResult(settings.steps, None, evaluation)


def _start_or_resume(
    detector: Detector,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    checkpoints: CheckpointStore,
    metadata: dict[str, object],
) -> TrainState:
    config = detector.config
    everywhere = replicated(mesh)
    if checkpoints.latest_step() is not None:
        check_resumable(checkpoints.read_metadata(), metadata)
        return checkpoints.restore(abstract_state(detector, optimizer, sharding=everywhere)).state
    variables = init_variables(detector, seed=config.train.seed, sharding=everywhere)
    backbone = config.model.backbone
    if backbone.weights is not None:
        params, rest = load_backbone(
            variables.params, variables.rest, Path(backbone.weights), backbone
        )
        variables = jax.device_put(Variables(params, rest), everywhere)
    elif backbone.norm == "frozen":
        raise ConfigError(
            "model.backbone.weights is None; with model.backbone.norm = frozen it must name an "
            "ImageNet ResNet file (or train from scratch with --model.backbone.norm batch)"
        )
    has_ema = config.optim.ema_decay is not None
    return init_state(variables, optimizer, ema=has_ema, sharding=everywhere)


class _Log:
    """Means of the metrics over `every` steps, read one step late so that the device never waits.

    Raises NonFiniteLossError at the first loss that is not finite.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._pending: deque[tuple[int, Metrics]] = deque()
        self._window: list[dict[str, float]] = []

    def add(
        self, step: int, metrics: Metrics, writer: MetricsWriter, progress: TrainProgress
    ) -> None:
        self._pending.append((step, metrics))
        if len(self._pending) > 1:
            self._read_one(writer, progress)

    def flush(self, writer: MetricsWriter, progress: TrainProgress) -> None:
        while self._pending:
            self._read_one(writer, progress)

    def _read_one(self, writer: MetricsWriter, progress: TrainProgress) -> None:
        step, on_device = self._pending.popleft()
        metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            terms = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            raise NonFiniteLossError(
                f"the loss is not finite at step {step}: {terms}. The last checkpoint is from "
                "before; try a lower optim.learning_rate, a longer optim.warmup_steps or "
                "optim.clip_norm"
            )
        progress.update(step, metrics)
        self._window.append(metrics)
        if step % self._every == 0:
            rows, self._window = self._window, []
            writer.write(
                step, "train", {k: sum(row[k] for row in rows) / len(rows) for k in metrics}
            )


def _log_evaluation(
    step: int,
    evaluation: Evaluation,
    source: DetectionSource,
    config: Config,
    writer: MetricsWriter,
    progress: TrainProgress,
) -> None:
    writer.write(step, "eval", evaluation.metrics)
    picture = prediction_grid(evaluation, source, max_pixels=config.data.max_pixels)
    writer.write_images(step, {"predictions": picture})
    ap, ap50, ap75 = (evaluation.metrics[name] for name in ("AP", "AP50", "AP75"))
    progress.message(f"step {step}: AP {ap:.4f}  AP50 {ap50:.4f}  AP75 {ap75:.4f}")


def _save_if_best(
    best: CheckpointStore,
    step: int,
    variables: Variables,
    evaluation: Evaluation,
    metadata: dict[str, object],
) -> None:
    ap = evaluation.metrics["AP"]
    if best.latest_step() is None or ap > float(best.read_metadata()["AP"]):
        best.save(step, variables, metadata | {"AP": ap})


def _profile(window: tuple[int, int] | None, step: int, run_dir: Path) -> None:
    if window is None:
        return
    first, last = window
    if step == first:
        jax.profiler.start_trace(str(run_dir / "profile"))
    elif step == last + 1:
        jax.profiler.stop_trace()
