"""The error of this room."""


class WeightsError(ValueError):
    """A file of weights that cannot be read, or does not fit the model."""
