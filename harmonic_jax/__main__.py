"""`python -m harmonic_jax COMMAND`."""

import sys

USAGE = """\
usage: python -m harmonic_jax COMMAND ..

commands:
  check-data SPEC   what is in a data set, and what the rules for bad data do to it

`python -m harmonic_jax COMMAND --help` explains a command."""


def main(argv: list[str]) -> int:
    """Runs a command and returns its exit status; 2 where there is no such command."""
    match argv:
        case ["check-data", *rest]:
            from harmonic_jax.cli import check_data

            return check_data.main(rest)
        case ["-h" | "--help", *_]:
            print(USAGE)
            return 0
        case _:
            print(USAGE, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
