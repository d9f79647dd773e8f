"""`harmonic-jax train`; without a config it trains the one that the README speaks of."""

import sys

from harmonic_jax.__main__ import run_script

if __name__ == "__main__":
    names_config = len(sys.argv) > 1 and not sys.argv[1].startswith("-")
    run_script("train", *([] if names_config else ["retinanet_r18_scenes"]))
