"""The error of this room."""

_MOST_LETTERS = 2000


class WeightsError(ValueError):
    """A file of weights that cannot be read, or does not fit the model.

    Its message is a line, whatever the names in a file hold.
    """

    def __init__(self, message: str) -> None:
        line = message.replace("\n", "\\n")
        super().__init__(line if len(line) <= _MOST_LETTERS else f"{line[:_MOST_LETTERS]} ..")
