"""See `python eval.py --help` and the README."""

import sys

from harmonic_jax.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
