"""The whole workflow: search for a network on scikit-learn's digits, use it, and see what was found.

    python examples/digits.py [--time-limit 45] [--path demo] [--seed 0]

Needs no download. Leaves in --path: the run itself; report.html, which shows what was searched and why; graphs/*.pdf
(every network, and the tree of morphs); and digits.png, some digits of the test set with the network's predictions. The
same fifth is held out for every seed, so that runs can be compared: morphnas compare demo other.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import morphnas
from morphnas.report import GraphvizMissing, visualize

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def draw(path: Path, images: np.ndarray, truth: np.ndarray, probabilities: np.ndarray, classes: np.ndarray) -> None:
    """A picture of digits with the network's predictions; mistakes and uncertain ones first."""
    said = classes[probabilities.argmax(1)]
    order = np.lexsort((probabilities.max(1), said == truth))[:32]
    figure, axes = plt.subplots(4, 8, figsize=(9, 5.2))
    for axis, i in zip(axes.flat, order, strict=True):
        axis.imshow(images[i], cmap="gray_r", interpolation="nearest")
        right = said[i] == truth[i]
        text = f"{said[i]}  {probabilities[i].max():.0%}" + ("" if right else f"\nis {truth[i]}")
        look = {} if right else {"color": "#b3261e", "fontweight": "bold"}
        axis.set_title(text, fontsize=9, **look)
        axis.axis("off")
    figure.suptitle("What the network reads, least certain first (of the held-out fifth)", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=45, help="seconds of the whole fit (default: 45)")
    parser.add_argument("--path", default="demo", help="folder for the run (default: demo); an earlier run is replaced")
    parser.add_argument("--seed", type=int, default=0, help="of the search (default: 0)")
    args = parser.parse_args()

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)  # (1797, 8, 8)
    x_train, x_test, y_train, y_test = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )

    classifier = morphnas.ImageClassifier(
        path=args.path,
        verbose=True,
        overwrite=True,
        random_state=args.seed,
        searcher_args={"default_model_width": 8},  # small first networks: the time is enough to search
    )
    classifier.fit(x_train, y_train, time_limit=args.time_limit)

    accuracy = classifier.evaluate(x_test, y_test)
    print(f"\nAccuracy on the held-out fifth, {len(x_test)} digits: {accuracy:.2%}")

    network = classifier.to_module()
    print(f"The network is a plain {type(network).__bases__[0].__name__}:\n{network.code}")

    picture = Path(args.path) / "digits.png"
    draw(picture, x_test, y_test, classifier.predict_proba(x_test), classifier.classes_)
    print(f"Some digits:  {picture}")
    print(f"The search:   {morphnas.write_report(args.path)}  (open it in a browser)")
    try:
        drawn = visualize(args.path)
    except GraphvizMissing as error:
        print(error, file=sys.stderr)
    else:
        best = f"{classifier.final_trial_}.pdf"
        print(f"The winner:   {next(path for path in drawn if path.name == best)}")
        print(f"All networks: {next(path for path in drawn if path.name == 'tree.pdf')}")


if __name__ == "__main__":
    main()
