"""Compilation: every program before the first step, and from disk where it was compiled before.

A jitted function compiles when it meets a shape for the first time. Left to itself that happens in
the middle of a run, where the first portrait image comes, or hours later, at the first evaluation.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from harmonic_jax.config import Config, DataConfig
from harmonic_jax.data.loader import eval_shapes, train_shapes
from harmonic_jax.data.records import DetectionSource
from harmonic_jax.data.sample import empty_batch
from harmonic_jax.files import cache_folder, make_folder
from harmonic_jax.structures import Batch
from harmonic_jax.training.log import TrainProgress
from harmonic_jax.training.sharding import eval_batch_size, split_batch
from harmonic_jax.training.state import TrainState
from harmonic_jax.training.step import PredictStep, TrainStep

_LOG = logging.getLogger(__name__)
CACHE_BYTES = 4 * 2**30
CACHE_SECONDS = 0.5  # What compiles faster is not worth a file.


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function, and arguments as it will get them: arrays, or shapes in their place."""

    name: str
    function: Any  # made by jax.jit
    arguments: tuple[Any, ...]


def use_compilation_cache() -> Path | None:
    """Keeps compiled programs in the user's cache folder, so that a second start finds them.

    JAX's own settings go first: JAX_COMPILATION_CACHE_DIR names another folder, and none if it is
    empty; JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. Programs that were not used for
    longest are deleted where the folder holds more than 4 GiB. Call it before the first array.
    Returns the folder; None where there is no cache, or JAX was told of one already.
    """
    settings: Any = jax.config
    if not settings.jax_enable_compilation_cache or settings.jax_compilation_cache_dir is not None:
        return None
    home = cache_folder()
    if home is None:
        _LOG.warning("compiled programs are not kept: there is no home folder")
        return None
    folder = home / "compiled"
    try:
        make_folder(folder)
        delete_oldest(folder, keep_bytes=CACHE_BYTES)
    except OSError as error:  # no reason not to train
        _LOG.warning("compiled programs are not kept: %s: %s", folder, error.strerror)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", CACHE_SECONDS)
    return folder


def delete_oldest(folder: Path, *, keep_bytes: int) -> None:
    """Deletes the files that were not used for longest, until the others are `keep_bytes`."""
    found = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
    total = 0
    for path, facts in sorted(found, key=lambda item: -max(item[1].st_atime, item[1].st_mtime)):
        total += facts.st_size
        if total > keep_bytes:
            path.unlink(missing_ok=True)


def abstract_batch(
    config: DataConfig, shape: tuple[int, int], *, batch_size: int, masks: bool, mesh: Mesh
) -> Batch:
    """The global batch of a bucket without its arrays: shapes, dtypes and sharding.

    `shape` is the images' (height, width), `batch_size` counts those of all devices, and `masks`
    says whether the ground truth has masks: in training, where `config.masks` is True.
    """
    return jax.tree.map(
        lambda rows: jax.ShapeDtypeStruct(
            (batch_size, *rows.shape[1:]), rows.dtype, sharding=split_batch(mesh)
        ),
        empty_batch(1, shape, config, masks=masks),
    )


def run_programs(
    config: Config,
    mesh: Mesh,
    state: TrainState,
    training: tuple[TrainStep, DetectionSource],
    evaluation: tuple[PredictStep, DetectionSource],
) -> list[Program]:
    """All that a run from this state on calls: both steps, for each bucket that has images."""
    data, settings = config.data, config.train
    train_step, train_source = training
    predict_step, eval_source = evaluation

    def program(step: Any, first: Any, shape: tuple[int, int], size: int, masks: bool) -> Program:
        height, width = shape
        form = "square" if height == width else "landscape" if width > height else "portrait"
        kind = "train step" if step is train_step else "inference"
        batch = abstract_batch(data, shape, batch_size=size, masks=masks, mesh=mesh)
        return Program(f"{kind}, {form} {height} x {width}", step, (first, batch))

    programs = []
    if int(state.step) < settings.steps:
        size = settings.batch_size
        shapes = train_shapes(train_source, data, batch_size=size, num_steps=settings.steps)
        programs += [program(train_step, state, shape, size, data.masks) for shape in shapes]
    size, variables = eval_batch_size(config, mesh), state.for_evaluation
    shapes = eval_shapes(eval_source, data, batch_size=size)
    return programs + [program(predict_step, variables, shape, size, False) for shape in shapes]


def compile_programs(
    programs: Sequence[Program],
    progress: TrainProgress,
    *,
    stops: Callable[[], bool] = lambda: False,
) -> None:
    """Compiles one after the other and tells how long each took.

    Nothing is run and nothing donated. JAX keeps what is compiled with the function, whose later
    calls with such arguments find it. Before each it asks `stops`, and leaves off where that is so.
    """
    progress.message(f"compiling {len(programs)} programs before the first step")
    for program in progress.track(programs, len(programs), "compiling"):
        if stops():
            return
        begun = time.monotonic()
        program.function.lower(*program.arguments).compile()
        progress.message(f"{program.name} ... {time.monotonic() - begun:.1f} s")
