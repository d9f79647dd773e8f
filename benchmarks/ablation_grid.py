"""What a grid of runs is, and which runs it has."""

import dataclasses
import itertools
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from harmonic_jax.cli.configs import call_in_file
from harmonic_jax.config import ConfigError


class GridError(Exception):
    """A grid that cannot be run, or results that are not of it."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: its place in the grid, and the arguments of train.py."""

    case: str
    arm: str
    seed: int
    args: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.case}-{self.arm}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Arms that are compared, on several cases, with several seeds.

    Attributes:
      title: of the table.
      cases: a name of a detector on a data set -> its config file and options.
      arms: a name -> options of train.py that make it.
      baseline: the arm that the others are compared with.
      references: further arms that the tables, not the figures, compare the others with.
      seeds: of every case and arm.
      common: options of all runs.
      only: arm -> cases it is run on, where that is not all.
      num_seeds: arm or case -> how many of the seeds it has, where that is not all.
    """

    title: str
    cases: Mapping[str, tuple[str, ...]]
    arms: Mapping[str, tuple[str, ...]]
    baseline: str
    seeds: tuple[int, ...]
    common: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    only: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    num_seeds: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for arm in (self.baseline, *self.references):
            if arm not in self.arms:
                raise GridError(f"cannot compare with {arm!r}; the arms are {list(self.arms)}")
        for field, names in (
            ("only", {*self.only, *itertools.chain(*self.only.values())}),
            ("num_seeds", {*self.num_seeds}),
        ):
            if unknown := sorted(names - {*self.arms, *self.cases}):
                raise GridError(f"{field} names {unknown}, which the grid does not have")

    def runs(self, names: str = "*") -> list[Run]:
        """Seed by seed, so that a grid that is stopped early has some of everything.

        Args:
          names: a pattern; runs with other names are left out.

        Raises:
          GridError: no run has such a name.
        """
        runs = [
            Run(case, arm, seed, (*self.cases[case], *self.common, *self.arms[arm]))
            for (place, seed), case, arm in itertools.product(
                enumerate(self.seeds), self.cases, self.arms
            )
            if case in self.only.get(arm, (case,))
            and all(place < self.num_seeds.get(name, len(self.seeds)) for name in (case, arm))
        ]
        found = [run for run in runs if fnmatch(run.name, names)]
        if not found:
            raise GridError(f"no run is named {names!r}; the first is {runs[0].name}")
        return found


def load_grid(path: Path) -> Grid:
    """Runs a grid file and returns what its `grid()` returns."""
    try:
        grid = call_in_file(path, "grid")
    except ConfigError as error:
        raise GridError(str(error)) from error
    if not isinstance(grid, Grid):
        raise GridError(f"{path} must define grid() returning a benchmarks.ablation_grid.Grid")
    return grid
