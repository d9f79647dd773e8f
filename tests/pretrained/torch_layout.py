"""State dicts in torchvision's layout with random numbers, for detectors of any size."""

import re

import numpy as np
from flax import nnx

from harmonic_jax.config import ModelConfig
from harmonic_jax.detectors import build_model
from harmonic_jax.pretrained import detector_layout
from harmonic_jax.pretrained.layout import Layout


def random_state_dict(
    config: ModelConfig, num_classes: int, layout: Layout | None = None
) -> dict[str, np.ndarray]:
    """What `model.state_dict()` would give, counters of batch norms included.

    Of the detector in torchvision's layout, or of what another layout has of it.
    """
    model = nnx.eval_shape(lambda: build_model(config, num_classes, rngs=nnx.Rngs(0)))
    layout = layout or detector_layout(config, num_classes)
    rng = np.random.default_rng(0)
    state: dict[str, np.ndarray] = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        shape = leaf.get_value().shape
        entry = layout.entry(path, len(shape))
        if entry is None:
            continue
        name, transform = entry
        shape = transform.torch_shape(shape)
        spread = 1 / np.sqrt(max(np.prod(shape[1:]), 1.0))
        state[name] = rng.uniform(-spread, spread, shape).astype(np.float32)
        if name.endswith("running_var"):
            state[name] = rng.uniform(0.5, 2.0, shape).astype(np.float32)
            counter = name.replace("running_var", "num_batches_tracked")
            state[counter] = np.array(rng.integers(1, 10**6))
    return state


def with_old_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """RetinaNet's names before torchvision 0.12: no block level, ReLUs counted."""

    def old(name: str) -> str:
        name = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", name)
        head = re.fullmatch(r"(head\.\w+\.conv)\.(\d)\.0\.(\w+)", name)
        return f"{head[1]}.{2 * int(head[2])}.{head[3]}" if head else name

    return {old(name): array for name, array in state.items()}
