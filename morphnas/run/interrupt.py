"""Ctrl-C and SIGTERM: once asks the work to stop and be kept, twice ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from morphnas.train.deadline import Stop

_USUAL: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""The signals, and what Python does with them: where somebody has other plans for one, it is theirs."""


@contextmanager
def stopping() -> Iterator[Stop]:
    """What the first signal asks to stop; afterwards the handlers are as they were.

    After a SIGTERM it ends the process by SystemExit, with the status that shells give one (143), once the inside has
    come to its end. In other threads than the main one signals are nobody's business.
    """
    stop = Stop()
    terminated = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal terminated
        terminated = terminated or number == signal.SIGTERM
        if not stop.asked:
            stop.asked = True
        elif terminated:
            raise SystemExit(128 + signal.SIGTERM)
        else:
            raise KeyboardInterrupt

    mine = []
    if threading.current_thread() is threading.main_thread():
        mine = [number for number, usual in _USUAL.items() if signal.getsignal(number) == usual]
    for number in mine:
        signal.signal(number, handle)
    try:
        yield stop
    except KeyboardInterrupt:
        if not terminated:
            raise
    finally:
        for number in mine:
            signal.signal(number, _USUAL[number])
    if terminated:
        raise SystemExit(128 + signal.SIGTERM)
