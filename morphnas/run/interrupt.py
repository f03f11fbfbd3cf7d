"""Ctrl-C and SIGTERM: the first signal requests a stop that keeps the results so far, the second ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from morphnas.train.deadline import Stop

_DEFAULT_HANDLERS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}
"""The signals that are handled, with Python's default handlers: those with another handler are left alone."""


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A `Stop` that the first signal sets; the handlers are restored afterwards.

    After a SIGTERM, SystemExit is raised once the body has ended, with status 143, as shells report it. Outside the
    main thread no signals are handled.
    """
    stop = Stop()
    terminated = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal terminated
        terminated = terminated or number == signal.SIGTERM
        if not stop.requested:
            stop.requested = True
        elif terminated:
            raise SystemExit(128 + signal.SIGTERM)
        else:
            raise KeyboardInterrupt

    handled = []
    if threading.current_thread() is threading.main_thread():
        handled = [number for number, default in _DEFAULT_HANDLERS.items() if signal.getsignal(number) == default]
    for number in handled:
        signal.signal(number, handle)
    try:
        yield stop
    except KeyboardInterrupt:
        if not terminated:
            raise
    finally:
        for number in handled:
            signal.signal(number, _DEFAULT_HANDLERS[number])
    if terminated:
        raise SystemExit(128 + signal.SIGTERM)
