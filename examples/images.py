"""Search on images in the Keras layout: an .npz with x_train, y_train, x_test and y_test (MNIST, CIFAR-10, ...).

    python examples/images.py --data mnist.npz --time-limit 300 [--path run] [--final-fit SECONDS]

The test set is evaluated once, at the end.
"""

import argparse
import sys
import time

import numpy as np

import morphnas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an .npz file with x_train, y_train, x_test, y_test")
    parser.add_argument("--time-limit", type=float, default=300, help="seconds of the whole fit (default: 300)")
    parser.add_argument("--path", help="folder for the run (default: a new temporary one)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --path if there is one")
    parser.add_argument("--final-fit", type=float, help="afterwards train the winner for so many more seconds")
    parser.add_argument("--device", help='"cpu", "cuda", "cuda:1" (default: a GPU if there is one)')
    parser.add_argument(
        "--search", default="bayesian", help="bayesian, climbing, evolution, greedy, grid, halving, pareto or random"
    )
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()

    try:
        with np.load(args.data, allow_pickle=False) as file:
            x_train, y_train, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{args.data} is no .npz with x_train, y_train, x_test and y_test: {error}")

    try:
        classifier = morphnas.ImageClassifier(
            path=args.path,
            verbose=True,
            resume="auto" if args.resume else False,
            search_type=args.search,
            device=args.device,
            random_state=args.seed,
        )
        begun = time.perf_counter()
        classifier.fit(x_train, y_train, time_limit=args.time_limit)
        took = time.perf_counter() - begun
        print(f"fit took {took:.1f} s of {args.time_limit:g} s; the run is in {classifier.path_}")
        if args.final_fit:
            classifier.final_fit(x_train, y_train, time_limit=args.final_fit)
    except ValueError as error:
        sys.exit(str(error))
    print(f"accuracy on {len(x_test):,} test images: {classifier.evaluate(x_test, y_test):.2%}")


if __name__ == "__main__":
    main()
