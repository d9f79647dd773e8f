"""A card for people, and for the Hugging Face Hub, beside a detector's weights."""

import json
from pathlib import Path

from harmonic_jax import __version__
from harmonic_jax.config import Config
from harmonic_jax.pretrained.hub import IMAGENET, imagenet_name
from harmonic_jax.training.config_json import differences
from harmonic_jax.training.saved_run import SavedRun

_NO_LICENSE = "What the licences of weights and data allow is not known here.\n\n"


def model_card(
    run: SavedRun, *, name: str, table: str, license: str | None = None, notes: str = ""
) -> str:
    """What a person should know of a detector before using it, in Markdown.

    Args:
      run: a run, opened.
      name: of the folder that the card and the weights lie in.
      table: of its last evaluation, as `eval` prints it; empty where there was none.
      license: of the weights, as the Hub calls it; None where it is not known.
      notes: Markdown that follows: what a program cannot know.
    """
    config, data = run.config, run.config.data
    family = type(config.model).__name__.removesuffix("Config")
    source = data.name if data.format == "tfds" else Path(str(data.root)).name
    buckets = " or ".join(f"{height} x {width}" for height, width in data.buckets)
    side = data.short_sides[-1]
    card = f"""---
license: {json.dumps(license or "unknown")}
library_name: harmonic_jax
pipeline_tag: object-detection
tags: [object-detection, jax]
datasets: [{json.dumps(source.partition("/")[0])}]
---

# {config.name}

{family} of harmonic_jax {__version__}.

```python
import harmonic_jax

detector = harmonic_jax.load({json.dumps(name)})  # this folder, or "hf:OWNER/NAME"
found = detector("photo.jpg", score_threshold=0.3)  # found.boxes, .scores, .names
```

* Classes ({len(run.class_names)}): {", ".join(run.class_names)}.
* Images: RGB, resized to a short side of {side} (at most {data.max_side}), padded to {buckets}.

## Training

* Data: {source} ({data.format}), split `{data.train_split}`.
{_training(config, run.step) if run.step else "* The weights were imported, not trained here."}

## On the split `{data.eval_split}`

```
{table or "not evaluated"}
```

    harmonic-jax eval {name} --root DIR

## Limits

It knows the classes above and no others, and is as good as the images resemble those of the
training. Objects that are small at a short side of {side} pixels are found less often: see the
column `small`. Scores are no probabilities.

{"" if license else _NO_LICENSE}{notes}"""
    return f"{card.rstrip()}\n"


def _training(config: Config, step: int) -> str:
    """The recipe: what everybody asks first, then all that is not as by default."""
    train, optim = config.train, config.optim
    weights = f"as in {config.init}" if config.init else config.model.backbone.weights or "random"
    if weights == IMAGENET:
        weights = f"ImageNet's, of {imagenet_name(config.model.backbone)}"
    changed = differences(Config(config.name), config)
    settings = "\n".join(f"{k} = {v!r}" for k, (_, v) in changed.items() if v is not None)
    return f"""* Backbone's weights at the start: {weights}.
* Losses: {"HarDet" if config.loss.hardet else "the baseline's"}.
* Optimizer: {optim.optimizer}, learning rate {optim.learning_rate:g}, {optim.schedule} schedule.
* Length: {step} of {train.steps} steps, {train.batch_size} images each ({step * train.batch_size}
  in all), seed {train.seed}.

Settings that are not as by default:

```
{settings}
```"""
