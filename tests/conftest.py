"""Settings that must be made before the first test."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: its threads spin on a busy machine

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # shells have it so for what they run in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

from hypothesis import HealthCheck, settings

# Examples are drawn the same way every time, and a slow machine is no failure.
settings.register_profile(
    "morphnas", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("morphnas")
