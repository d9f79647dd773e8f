"""Shared by all tests: strictness, shape checks, and where the real images are."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# LLVM's optimisations take half of the suite's processor time, for programs that run once or twice;
# splitting a program among threads gains nothing where every processor has a worker.
# `XLA_FLAGS= python -m pytest` tests with them.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)
# Many tests, and the commands they start, compile the same small detectors: once is enough.
# In a folder that all workers share and that goes when they end; not the one at home.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="harmonic_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

import jaxtyping

import tests.shapes  # noqa: F401  (the hook imports its package alone)

# Annotations such as Float[Array, "n 4"] are checked at every call while tests run.
jaxtyping.install_import_hook(
    [
        "harmonic_jax.ops",
        "harmonic_jax.detectors.parts",
        "harmonic_jax.detectors.rpn",
        "harmonic_jax.detectors.roi_head",
    ],
    "tests.shapes.checked",
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).parent.parent.parent / "shared"


def _real_data(name: str) -> Path:
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"needs the {name} images, which are too big for the repository")
    return folder


@pytest.fixture(scope="session")
def bccd() -> Path:
    """364 photos of blood cells with VOC XML annotations."""
    return _real_data("bccd")


@pytest.fixture(scope="session")
def voc2007() -> Path:
    """PASCAL VOC 2007 at up to 320 pixels."""
    return _real_data("voc2007")


@pytest.fixture(scope="session")
def coco_tiny() -> Path:
    """80 + 80 COCO images in COCO's own layout."""
    return _real_data("coco_tiny")


@pytest.fixture(scope="session")
def cases() -> Path:
    """Small inputs that people reported as trouble for other tools, a folder each."""
    if not (SHARED / "cases").is_dir():
        pytest.skip("needs the folder of reported inputs, which is not part of the repository")
    return SHARED / "cases"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first: with several workers, the longest files must not start last."""
    long = (
        "test_loop.py",
        "test_step.py",
        "test_commands.py",
        "test_checkpoint.py",
        "test_detectors.py",
        "test_losses.py",
        "test_torchvision.py",
        "test_initialise.py",
    )
    items.sort(key=lambda item: item.path.name not in long)
