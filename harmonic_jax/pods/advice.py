"""What to change in a config that does not fit into a chip's memory."""

import math

from harmonic_jax.config import Config
from harmonic_jax.pods.chips import CHIPS, GIB, Slice
from harmonic_jax.pods.measure import TooBig

# A slot of the batch is at least one image; below this share of it only smaller images help.
_LEAST = 1.0


def advice(refused: TooBig, config: Config, pod: Slice) -> list[str]:
    """One line a knob that would make the step fit, best first.

    Estimates: activations, which are all but the state, are taken to grow with the images that a
    chip works on at once, and with their pixels. The way to know is to compile again.
    """
    parts = config.optim.accumulate
    at_once = refused.images // parts
    room = refused.available - refused.state
    per_image = (refused.needed - refused.state) / at_once
    fitting = room / per_image
    lines = []
    if fitting >= _LEAST:
        lines += _fewer_images(refused.images, int(fitting), config, pod)
    if config.train.precision == "float32":
        lines.append("--train.precision bfloat16: activations take half of the bytes")
    if room > 0:
        shrink = math.sqrt(min(1.0, fitting / (1 if fitting < _LEAST else at_once)))
        side = int(config.data.short_sides[-1] * shrink) // config.data.stride * config.data.stride
        scale = side / config.data.short_sides[-1]
        longest = int(config.data.max_side * scale)
        lines.append(
            f"--data.short-sides {side} --data.max-side {longest}: smaller images"
            + (" (with one image a chip)" if fitting < _LEAST else "")
        )
    bigger = [c.name for c in CHIPS.values() if c.memory > refused.needed]
    if bigger:
        lines.append(f"a chip with more memory: {', '.join(bigger)}")
    return lines


def _fewer_images(images: int, most: int, config: Config, pod: Slice) -> list[str]:
    """Knobs that leave a chip at most `most` of its `images` at once."""
    parts = next(n for n in range(1, images + 1) if images % n == 0 and images // n <= most)
    share = images // parts
    return [
        f"--optim.accumulate {parts}: {share} images a chip at once; the update stays that of "
        f"{config.train.batch_size} images",
        f"--batch-size {share * pod.num_chips}: {share} images a chip",
        f"{pod.num_chips * parts} chips for the same batch: {share} images a chip",
    ]


def gibibytes(num_bytes: float) -> str:
    """
    >>> gibibytes(3 * 2**29)
    '1.50 GiB'
    """
    return f"{num_bytes / GIB:.2f} GiB"
