"""Draw what a search tried: a PDF of every network and one of the tree of morphs.

python examples/visualize.py RUN [--out FOLDER]
"""

import argparse
import sys

import morphnas
from morphnas.report import GraphvizMissing, trials_table, visualize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run, the classifier's path")
    parser.add_argument("--out", help="folder for the drawings (default: graphs in the run's folder)")
    args = parser.parse_args()
    try:
        run = morphnas.load_run(args.run)
        print(trials_table(run.trials, best=run.about.get("best")))
        for path in visualize(args.run, args.out):
            print(path)
    except (morphnas.RunError, GraphvizMissing) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
