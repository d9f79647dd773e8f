"""What devices send each other: the gradient once, and next to nothing else."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harmonic_jax.config import Config
from tests.detectors.tiny import FASTER_RCNN
from tests.training.tiny import tiny_config

DEVICES = 8


def retinanet() -> Config:
    return tiny_config(norm="frozen")


def faster_rcnn() -> Config:
    return dataclasses.replace(tiny_config(), model=FASTER_RCNN)


SCRIPT = """
import dataclasses, json, re, sys
import jax
from harmonic_jax.pods.collectives import find_collectives
from harmonic_jax.pods.compilation import lower_train_step, tree_bytes
from harmonic_jax.training.sharding import data_mesh
from tests.pods import test_gradient_sum as configs

config = getattr(configs, sys.argv[1])()
lowered, state, _ = lower_train_step(config, data_mesh(), (64, 64), num_classes=3)
quick = {"xla_backend_optimization_level": 0}  # of the machine code only
found = find_collectives(lowered.compile(compiler_options=quick).as_text())
optim = dataclasses.replace(config.optim, gradient_dtype="bfloat16")
config = dataclasses.replace(config, optim=optim)
shorter, *_ = lower_train_step(config, data_mesh(), (64, 64), num_classes=3)
halves = re.findall(r"all_reduce.*?\\}\\) : \\((.*?)\\) ->", shorter.as_text(), flags=re.DOTALL)
report = {
    "gradient": tree_bytes(state.variables.params),
    "num_params": len(jax.tree.leaves(state.variables.params)),
    "kinds": [c.kind for c in found],
    "sent": sum(c.sent_bytes * c.num_runs for c in found),
    "bfloat16": " ".join(halves).count("bf16>"),
}
print(json.dumps(report))
"""


@pytest.mark.parametrize("name", ["retinanet", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_the_gradient_is_sent_once(name: str) -> None:
    """Norms are frozen here: those of a batch exchange their statistics layer by layer."""
    flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT, name],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(out.stdout)
    assert 1 <= len(report["kinds"]) <= 3
    assert set(report["kinds"]) == {"all-reduce"}
    # Compiled for processors, a sum in bfloat16 becomes one in float32: what is asked for counts.
    assert report["bfloat16"] == report["num_params"]
    once = 2 * (DEVICES - 1) / DEVICES * report["gradient"]
    assert once <= report["sent"] <= 1.01 * once
