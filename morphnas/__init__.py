"""morphnas finds neural networks: network morphism, guided by Bayesian optimisation, for PyTorch.

>>> import morphnas
>>> clf = morphnas.ImageClassifier(path="run", verbose=True)      # doctest: +SKIP
>>> clf.fit(x_train, y_train, time_limit=600).evaluate(x_test, y_test)  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphnas.api import *  # noqa: F403  # the names in its `__all__`

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load all public names when the first one is used (PEP 562): worker processes use none."""
    if not name.startswith("__") or name == "__all__":
        api = importlib.import_module("morphnas.api")
        globals().update({public: getattr(api, public) for public in api.__all__}, __all__=api.__all__)
    try:
        return globals()[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
