"""A card for people, beside a detector's weights."""

from harmonic_jax import __version__
from harmonic_jax.training.saved_run import SavedRun


def model_card(run: SavedRun, *, name: str, metrics: dict[str, float]) -> str:
    """What a person should know of a detector before using it, in Markdown.

    Args:
      run: a run, opened.
      name: of the weights' file.
      metrics: of its last evaluation; empty where there was none.
    """
    config, data = run.config, run.config.data
    family = type(config.model).__name__.removesuffix("Config")
    loss = "HarDet" if config.loss.hardet else "the baseline's losses"
    source = data.name if data.format == "tfds" else f"a folder in {data.format.upper()} layout"
    buckets = " or ".join(f"{height} x {width}" for height, width in data.buckets)
    shown = ("AP", "AP50", "AP75", "AR_100", "mask_AP", "VOC_mAP")
    rows = [f"| {key} | {metrics[key]:.3f} |" for key in shown if key in metrics]
    table = "\n".join(
        ["| metric | value |", "|---|---|", *rows] if rows else ["Not evaluated yet."]
    )
    return f"""# {config.name}

{family}, trained with {loss} by harmonic_jax {__version__},
step {run.step} of {config.train.steps}.

* Data: {source}, split `{data.train_split}`.
* Classes ({len(run.class_names)}): {", ".join(run.class_names)}.
* Images: RGB, resized to a short side of {data.short_sides[-1]} (at most
  {data.max_side}), padded to {buckets}.
* Backbone's weights: {config.model.backbone.weights or "random at the start"}.

## On the split `{data.eval_split}`

{table}

## Use

```python
import harmonic_jax

detector = harmonic_jax.load("{name}")
found = detector("photo.jpg")
```

Scores and boxes are as good as the images resemble those of the training data.
What the licence of the data allows is not known here: add it before you publish.
"""
