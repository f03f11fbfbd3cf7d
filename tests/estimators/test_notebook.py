"""Fits in a notebook: in another process, inside an event loop, without a script and a `__main__` guard."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

CELLS = [
    """
import numpy as np
from sklearn.datasets import load_digits
import morphnas
x, y = load_digits(return_X_y=True)
x = x[:400].reshape(-1, 8, 8)
y = y[:400]
sizes = {"default_model_width": 4, "trainer_args": {"epochs": 2}}
settings = dict(max_trials=4, random_state=0, refit=False, searcher_args=sizes, verbose=True)
""",
    'one = morphnas.ImageClassifier("one", **settings).fit(x, y, time_limit=120)',
    'two = morphnas.ImageClassifier("two", executor="process", devices=2, **settings).fit(x, y, time_limit=120)',
    'print([(len(morphnas.load_run(path).trials), path) for path in ("one", "two")])',
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of the notebook's kernel
def test_fit_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    kernel = tmp_path / "jupyter" / "kernels" / "here"
    kernel.mkdir(parents=True)
    argv = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (kernel / "kernel.json").write_text(f'{{"argv": {argv}, "display_name": "here", "language": "python"}}')
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client = nbclient.NotebookClient(
        book, timeout=280, kernel_name="here", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    texts = ["".join(output.get("text", "") for output in cell.outputs) for cell in book.cells]
    assert texts[-1].strip() == "[(4, 'one'), (4, 'two')]"
    assert all("accuracy" in text.lower() for text in texts[1:3])
