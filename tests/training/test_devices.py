"""A step does not know on how many devices it runs: from any state, all detectors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.test_bfloat16 import MODELS

ROOT = Path(__file__).parent.parent.parent


def steps_of(name: str, *, steps: int) -> list[dict]:
    out = subprocess.run(
        [sys.executable, "-m", "tests.training.on_devices", name, "--steps", str(steps)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in out.stdout.splitlines()]


# What two processes train (test_multi_process.py) shows it for RetinaNet in less time.
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_step_on_four_devices_is_that_on_one(name: str) -> None:
    """Samples, assignments and statistics are the same, gradients but for rounding."""
    for row in steps_of(name, steps=3):
        on_one, on_four = row["num_positive"]
        assert on_one == on_four
        assert row["loss_four"] < 1e-5 * row["loss"]
        assert row["gradient_four"] < 1e-5
        assert row["variables_four"] < 1e-6
