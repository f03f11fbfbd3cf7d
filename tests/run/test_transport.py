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
from tests.run.doubles import module_from_file

CUSTOM_MORPH = """
from dataclasses import dataclass
from morphnas.graph import Deeper

@dataclass(frozen=True)
class Custom(Deeper):
    tag = "custom"
"""
WORKER = """
import sys
from morphnas.run.transport import deserialise_job
job = deserialise_job(sys.stdin.buffer.read())
print(job.morphs[0], job.morphs[0].grow(job.start).depth - job.start.depth)
"""


def test_morph_from_file_not_on_path_reaches_worker(tmp_path: Path) -> None:
    graph = cnn((1, 8, 8), 3, width=4, depth=1)
    with module_from_file(tmp_path / "custom_morphs.py", CUSTOM_MORPH) as module:
        data = serialise_job(Job(graph, (module.Custom("relu_3"),), Recipe(), 1.0, 0))
    del MORPHS["custom"]
    worker = subprocess.run([sys.executable, "-c", WORKER], input=data, capture_output=True, check=True, timeout=120)
    assert worker.stdout.split() == [b"custom(relu_3,", b"3)", b"1"]
    assert isinstance(pickle.loads(data), tuple)


def test_importable_modules_are_not_sent_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are the library's classes: pickled by value, they would become different classes of the same name."""
    send_by_value(pytest.raises)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "meta_path", [])  # as if no finder knew the library
        send_by_value(Conv)
    assert not cloudpickle.list_registry_pickle_by_value()
