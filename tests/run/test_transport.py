"""Tests of the serialisation of jobs, with user-defined classes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

from morphnas.graph import Conv, cnn
from morphnas.graph.morphs import MORPHS
from morphnas.run.jobs import Job
from morphnas.run.transport import send_by_value, serialise_job
from morphnas.train.recipe import Recipe
from tests.run.doubles import from_file

OWN = """
from dataclasses import dataclass
from morphnas.graph import Deeper

@dataclass(frozen=True)
class Far(Deeper):
    tag = "far"
"""
WORKER = """
import sys
from morphnas.run.transport import deserialise_job
job = deserialise_job(sys.stdin.buffer.read())
print(job.morphs[0], job.morphs[0].grow(job.start).depth - job.start.depth)
"""


def test_a_morph_from_a_file_that_is_nowhere_on_the_path_reaches_a_worker(tmp_path: Path) -> None:
    graph = cnn((1, 8, 8), 3, width=4, depth=1)
    with from_file(tmp_path / "far_morphs.py", OWN) as module:
        parcel = serialise_job(Job(graph, (module.Far("relu_3"),), Recipe(), 1.0, 0))
    del MORPHS["far"]
    done = subprocess.run([sys.executable, "-c", WORKER], input=parcel, capture_output=True, check=True, timeout=120)
    assert done.stdout.split() == [b"far(relu_3,", b"3)", b"1"]
    assert isinstance(pickle.loads(parcel), tuple)


def test_what_workers_can_import_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's classes never are: pickled by value, they would become different classes of the same name."""
    send_by_value(pytest.raises)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "meta_path", [])  # as if it were installed in a way that Python's finders do not know
        send_by_value(Conv)
    assert not cloudpickle.list_registry_pickle_by_value()
