"""Two implementations timed in turns, so that whatever else the machine does hits both."""

import statistics
import time
from collections.abc import Callable

import jax


def compare(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    repeats: int,
    agree: str,
    peer_name: str = "torchvision",
) -> tuple[float, float]:
    """Print the medians, their ratio and what was checked; returns the medians, in ms.

    Args:
      name: what is measured.
      ours: one run; its result is waited for.
      peer: one run of the other side.
      repeats: how often each side runs.
      agree: what a check before found the two sides to agree in.
      peer_name: of the other side.
    """
    jax.block_until_ready(ours())  # Compiled and warm.
    peer()
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(repeats):
        for side, function in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[side].append(time.perf_counter() - start)
    mine, other = (statistics.median(seconds[side]) * 1e3 for side in ("ours", "peer"))
    print(
        f"{name:36} {mine:9.2f} ms   {peer_name} {other:9.2f} ms   {other / mine:7.2f}x   {agree}"
    )
    return mine, other
