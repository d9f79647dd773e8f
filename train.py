"""See `python train.py --help` and the README."""

import sys

from harmonic_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
