"""Settings that must be in place before the first test."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; its threads would spin on a busy machine

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells set it for background processes
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import HealthCheck, settings

from morphnas.run import final

# Examples are deterministic, and there is no deadline, as the machine may be slow.
settings.register_profile(
    "morphnas", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("morphnas")


@pytest.fixture(autouse=True)
def short_final_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have few examples; their final trainings should not take longer for that."""
    monkeypatch.setattr(final, "FEW_EXAMPLES", 1)
