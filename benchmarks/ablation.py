"""A grid of training runs: arms x detectors and data sets x seeds, compared with a baseline.

    python benchmarks/ablation.py benchmarks/grids/components.py --out runs/ablation
    python benchmarks/ablation.py benchmarks/grids/components.py --out DIR --table --plot FILE.png

Each run is what `train.py` makes of a config file and options. A grid that was killed goes on where
it was: finished runs are skipped, a half one is resumed from its checkpoint. Every finished run
adds a line to the results (OUT/results.jsonl, or --results FILE), and tables and figures are made
from those lines alone. Grids may share a file: a run that several of them have is made once.
"""

import argparse
import signal
import sys
from pathlib import Path

if __name__ == "__main__":  # as a script, the folder of this file is what Python searches
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ablation_figures import draw_gains
from benchmarks.ablation_grid import GridError, load_grid
from benchmarks.ablation_results import read_results
from benchmarks.ablation_runner import run_grid
from benchmarks.ablation_tables import tables


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("grid", type=Path, help="a Python file that defines grid()")
    parser.add_argument("--out", type=Path, required=True, help="where runs and logs go")
    parser.add_argument("--results", type=Path, help="the lines (default: OUT/results.jsonl)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on its own cores")
    parser.add_argument("--runs", default="*", help="of these names alone: 'retinanet-*-seed0'")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the gains of what is there")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):  # shells start `... &` with SIGINT ignored
        signal.signal(number, signal.default_int_handler)  # both end the runs first
    results = args.results or args.out / "results.jsonl"
    try:
        grid = load_grid(args.grid)
        if not (args.table or args.plot):
            run_grid(grid, args.out, results, jobs=args.jobs, names=args.runs)
        rows = read_results(results)
        if args.plot:
            draw_gains(rows, grid, args.plot)
        print(tables(rows, grid))
    except GridError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
