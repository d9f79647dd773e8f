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
    config = run.config
    data = config.data
    loss = "HarDet" if config.loss.hardet else "the baseline's losses"
    shown = [
        key for key in ("AP", "AP50", "AP75", "AR_100", "mask_AP", "VOC_mAP") if key in metrics
    ]
    rows = [f"| {key} | {metrics[key]:.3f} |" for key in shown]
    table = ["| metric | value |", "|---|---|", *rows] if rows else ["Not evaluated yet."]
    source = data.name if data.format == "tfds" else f"a folder in {data.format.upper()} layout"
    return "\n".join(
        [
            f"# {config.name}",
            "",
            f"{type(config.model).__name__.removesuffix('Config')}, trained with {loss} by "
            f"harmonic_jax {__version__}, step {run.step} of {config.train.steps}.",
            "",
            f"* Data: {source}, split `{data.train_split}`.",
            f"* Classes ({len(run.class_names)}): {', '.join(run.class_names)}.",
            f"* Images: RGB, resized to a short side of {data.short_sides[-1]} (at most "
            f"{data.max_side}), padded to {' or '.join(f'{h} x {w}' for h, w in data.buckets)}.",
            f"* Backbone's weights: {config.model.backbone.weights or 'random at the start'}.",
            "",
            f"## On the split `{data.eval_split}`",
            "",
            *table,
            "",
            "## Use",
            "",
            "```python",
            "import harmonic_jax",
            "",
            f'detector = harmonic_jax.load("{name}")',
            'found = detector("photo.jpg")',
            "```",
            "",
            "Scores and boxes are as good as the images resemble those of the training data.",
            "What the licence of the data allows is not known here: add it before you publish.",
            "",
        ]
    )
