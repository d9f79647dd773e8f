"""`harmonic-jax eval`; see `python eval.py --help` and the README."""

from harmonic_jax.__main__ import run_script

if __name__ == "__main__":
    run_script("eval")
