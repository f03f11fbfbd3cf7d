"""Regression: by how much is a digit rotated?

    python examples/angles.py [--time-limit 30] [--path angles]

Rotates scikit-learn's digits by -60 to 60 degrees, has an ImageRegressor find a network that predicts the angles, and
draws digits of a held-out fifth, as given and rotated back by the predicted angle, into --path/angles.png.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import morphnas

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def turned(images: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Images (n, 8, 8), each turned by its angle, in degrees."""
    return np.stack([rotate(image, angle, reshape=False, order=1) for image, angle in zip(images, angles, strict=True)])


def draw(path: Path, images: np.ndarray, truth: np.ndarray, said: np.ndarray) -> None:
    """Digits as they were given, above the same ones turned back; the largest mistakes first."""
    worst = np.argsort(-np.abs(said - truth))[:: max(1, len(said) // 10)][:10]
    back = turned(images[worst], -said[worst])
    figure, axes = plt.subplots(2, 10, figsize=(11, 2.9))
    for column, i in enumerate(worst):
        for axis, image in zip(axes[:, column], (images[i], back[column]), strict=True):
            axis.imshow(image, cmap="gray_r", interpolation="nearest")
            axis.axis("off")
        axes[0, column].set_title(f"{truth[i]:.0f}°", fontsize=9)
        axes[1, column].set_title(f"{said[i]:.0f}°", fontsize=9)
    figure.suptitle("Turned by so much, and turned back by what the network says, from worst to best", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", type=float, default=30, help="seconds of the whole fit (default: 30)")
    parser.add_argument("--path", default="angles", help="folder for the run (default: angles); an earlier is replaced")
    args = parser.parse_args()

    digits = load_digits().images
    angles = np.random.default_rng(0).uniform(-60, 60, len(digits))
    x_train, x_test, y_train, y_test = train_test_split(turned(digits, angles), angles, test_size=0.2, random_state=0)

    regressor = morphnas.ImageRegressor(args.path, verbose=True, overwrite=True, random_state=0)
    regressor.fit(x_train, y_train, time_limit=args.time_limit)
    said = regressor.predict(x_test)
    print(f"R2 on the held-out fifth: {regressor.score(x_test, y_test):.4f}")
    print(f"off by {np.abs(said - y_test).mean():.1f} degrees on average")
    draw(Path(args.path) / "angles.png", x_test, y_test, said)
    print(f"see {args.path}/angles.png, and: morphnas report {args.path}")


if __name__ == "__main__":
    main()
