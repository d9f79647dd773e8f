"""Images that are in a data set more than once, by their bytes."""

from collections.abc import Iterator

MAX_EXAMPLES = 3


class SameImages:
    """Collects the images of splits, and says which of them are the same.

    Example:
      >>> images = SameImages()
      >>> for split, name, digest in (("train", "a.jpg", b"1"), ("val", "b.jpg", b"1")):
      ...     images.add(split, name, digest)
      >>> print(*images.lines())
      1 images of val are also in train, byte for byte: b.jpg (a.jpg)
    """

    def __init__(self) -> None:
        self._names: dict[bytes, dict[str, str]] = {}  # by digest the first name in each split
        self._same: dict[tuple[str, str], list[str]] = {}

    def add(self, split: str, name: str, digest: bytes) -> None:
        """Takes an image; a digest is that of all bytes of its file."""
        known = self._names.setdefault(digest, {})
        for other, first in known.items():
            example = name if name == first else f"{name} ({first})"
            self._same.setdefault((split, other), []).append(example)
        known.setdefault(split, name)

    def lines(self) -> Iterator[str]:
        """A line for each two splits that share images, and for each that repeats some."""
        for (split, other), examples in self._same.items():
            what = "have a twin" if split == other else f"are also in {other}"
            shown = ", ".join(examples[:MAX_EXAMPLES])
            more = ", .." if len(examples) > MAX_EXAMPLES else ""
            yield f"{len(examples)} images of {split} {what}, byte for byte: {shown}{more}"
