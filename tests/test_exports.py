"""Exports: loaded without morphnas they compute the same, and on errors no files are left behind."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError

from morphnas import ExportError, ImageClassifier, ImageRegressor, Network, RunError, export, load_run
from morphnas import exports as module
from morphnas.exports import to_source
from morphnas.graph import Conv, GlobalPool, Graph, fresh_weights, mlp
from tests.estimators.conftest import stripes
from tests.strategies import graphs, sequential

EVIL = '"""\nimport os\nos.abort() # \\'


@pytest.fixture(scope="module")
def fitted_classifier(tmp_path_factory: pytest.TempPathFactory) -> ImageClassifier:
    """Fitted to images whose labels need escaping in source code. Must not be changed."""
    x, y = stripes(150)
    path = tmp_path_factory.mktemp("runs") / "run"
    args = {"default_model_width": 4, "default_model_len": 1, "trainer_args": {"epochs": 1}}
    classifier = ImageClassifier(path, max_trials=1, random_state=0, device="cpu", searcher_args=args, refit=False)
    return classifier.fit(x, np.array([EVIL, "{brace}", "'q'"])[y], time_limit=20)


@pytest.mark.skipif(os.name != "posix", reason="POSIX file modes")
def test_source_and_weights_have_the_same_file_mode(fitted_classifier: ImageClassifier, tmp_path: Path) -> None:
    files = export(fitted_classifier, tmp_path / "net.py").files
    assert len({file.stat().st_mode for file in files}) == 1


LOAD_WITHOUT_MORPHNAS = """
    import sys
    class Refuse:
        def find_spec(self, name, *args):
            if name.partition(".")[0] == "morphnas":
                raise ImportError("blocked")
    sys.meta_path.insert(0, Refuse())
    import json, torch
    from safetensors.torch import load_file
    x, path = load_file(sys.argv[2])["x"], sys.argv[1]
    with torch.no_grad():
        if path.endswith(".py"):
            import runpy
            found = runpy.run_path(path)
            logits, labels = found["load"]()(x), found["LABELS"]
        elif path.endswith(".pt2"):
            extra = {"labels.json": ""}
            logits, labels = torch.export.load(path, extra_files=extra).module()(x), json.loads(extra["labels.json"])
        else:
            import onnxruntime
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            logits = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
            labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    assert not any(name.startswith("morphnas") for name in sys.modules)
    print(json.dumps([logits.tolist(), labels]))
"""
"""Script that prints the logits and labels of an export."""


def run_without_morphnas(file: Path, x: torch.Tensor, folder: Path) -> tuple[np.ndarray, list[str]]:
    """Probabilities for `x`, and labels, of an export that is loaded in a process without morphnas."""
    save_file({"x": x}, folder / "x.safetensors")
    command = [sys.executable, "-c", textwrap.dedent(LOAD_WITHOUT_MORPHNAS), str(file), str(folder / "x.safetensors")]
    logits, labels = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout)
    return torch.tensor(logits).double().softmax(1).numpy(), labels


def skip_without_extras(suffix: str) -> None:
    if suffix == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["py", "pt2", "onnx"])
def test_export_predicts_the_same_without_morphnas(
    suffix: str, fitted_classifier: ImageClassifier, tmp_path: Path
) -> None:
    skip_without_extras(suffix)
    done = export(fitted_classifier, tmp_path / "new" / f"it's {{a}} net.{suffix}")
    assert done.error <= 1e-5
    assert done.files[0] == tmp_path / "new" / f"it's {{a}} net.{suffix}"
    assert sorted(done.files) == sorted((tmp_path / "new").iterdir())
    images = stripes(37)[0]
    probabilities, labels = run_without_morphnas(done.files[0], torch.from_numpy(images).float()[:, None], tmp_path)
    assert labels == fitted_classifier.classes_.tolist()
    assert probabilities == pytest.approx(fitted_classifier.predict_proba(images), abs=1e-5)


@pytest.mark.parametrize("suffix", ["py", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("pt2", "onnx"))])
def test_float64_rows_are_not_rounded(suffix: str, tmp_path: Path) -> None:
    skip_without_extras(suffix)
    y = np.arange(200) % 2
    x = np.stack([1.7e9 + y, np.random.default_rng(0).normal(size=200)], 1)
    args = {"trainer_args": {"epochs": 20}}
    ImageClassifier(tmp_path / "run", max_trials=1, refit=False, random_state=0, searcher_args=args).fit(x, y)
    loaded = ImageClassifier.load(tmp_path / "run")
    assert loaded.evaluate(x, y) == loaded.score(x, y) == 1.0
    expected = loaded.predict_proba(x)
    with torch.no_grad():
        assert loaded.to_module()(torch.from_numpy(x)).double().softmax(1).numpy() == pytest.approx(expected, abs=1e-5)
    file = export(loaded, tmp_path / f"net.{suffix}").files[0]
    probabilities, _ = run_without_morphnas(file, torch.from_numpy(x), tmp_path)
    assert probabilities == pytest.approx(expected, abs=1e-5)


@settings(max_examples=25)
@given(graph=graphs(morphs=4), seed=st.integers(0, 99))
def test_source_of_any_network_computes_the_same(graph: Graph, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    network = Network(graph, fresh_weights(graph, random)).to_module().eval()
    source = to_source(network, "A network", None, "weights")
    assert "morphnas" not in source.partition("class Network")[2]
    names: dict[str, Any] = {"__file__": "network.py"}
    exec(compile(source, "network.py", "exec"), names)
    from_source = names["Network"]()
    from_source.load_state_dict(network.state_dict())
    x = torch.randn(3, *graph.shapes[graph.input.name], generator=random)
    with torch.no_grad():
        assert torch.equal(from_source.eval()(x), network(x))


def test_run_trial_and_network_can_be_exported(fitted_classifier: ImageClassifier, tmp_path: Path) -> None:
    first = export(fitted_classifier.path_, tmp_path / "a.py")
    run = load_run(fitted_classifier.path_)
    assert export(run, tmp_path / "b.py").files[0].read_text().replace("b.saf", "a.saf") == first.files[0].read_text()
    network = export(run.load_best_model(), tmp_path / "c.py").files[0].read_text()
    assert "LABELS" not in network
    assert "preprocessed examples" in network
    assert str(first).startswith(str(tmp_path / "a.py"))
    trial = export(run, tmp_path / "d.py", trial=0).files[0].read_text()
    assert f"{run.trial(0).graph.parameters:,} parameters" in trial
    assert "raw examples" in trial
    with pytest.raises(ValueError, match="of a run to export, not of a Network"):
        export(run.load_best_model(), tmp_path / "e.py", trial=0)


def test_custom_layer_is_exported_but_not_as_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conv, "module", lambda self, *_: CustomConv(1, self.filters, 3, bias=False, padding=1))
    graph = sequential(Conv(3), GlobalPool(), shape=(1, 8, 8))
    with pytest.raises(ExportError, match=r"CustomConv: a layer that is not PyTorch's .* but as \.pt2 or \.onnx"):
        export(Network(graph, fresh_weights(graph)), tmp_path / "a.py")
    assert not list(tmp_path.iterdir())
    export(Network(graph, fresh_weights(graph)), tmp_path / "a.pt2")


class CustomConv(torch.nn.Conv2d):
    """A layer of a user-defined class."""


def test_source_describes_shape_of_outputs(tmp_path: Path) -> None:
    graph = sequential(Conv(3), shape=(2, 8, 8))
    source = export(Network(graph, fresh_weights(graph)), tmp_path / "net.py").files[0].read_text()
    assert "Takes preprocessed examples, as the network was trained on: (n, 2, 8, 8)," in source
    assert "Gives logits (n, 3, 8, 8)." in source


def test_source_describes_dtype_of_inputs(fitted_classifier: ImageClassifier, tmp_path: Path) -> None:
    assert "any real dtype" in export(fitted_classifier, tmp_path / "fitted.py").files[0].read_text()
    graph = mlp((3,), 2, depth=1)
    weights = {name: w.double() if w.is_floating_point() else w for name, w in fresh_weights(graph).items()}
    file = export(Network(graph, weights), tmp_path / "net.py").files[0]
    assert "(n, 3), float32." in file.read_text()
    assert runpy.run_path(str(file))["load"]()(torch.zeros(1, 3)).dtype == torch.float32


def test_error_is_relative_to_largest_output_of_all_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the first batch, of one example, the output is nearly 0: rounding is small only relative to other outputs."""
    graph = mlp((3,), 1, depth=0)
    weights = fresh_weights(graph)
    first = Network(graph, weights).to_module()(torch.randn(1, 3, generator=torch.Generator().manual_seed(1)))
    weights["dense_1.bias"] -= first.detach()[0] - 1e-6

    def read_rounded(file: Path) -> Any:
        network = module._read_source(file)
        return lambda x: network(x) + 1e-7

    monkeypatch.setitem(module._WRITERS, ".py", (module._write_source, read_rounded))
    assert 0 < export(Network(graph, weights), tmp_path / "net.py").error < 1e-5


def test_regression_error_is_relative_to_target_deviations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Relative to the outputs, large errors would pass if targets are times in seconds."""
    x = np.random.default_rng(0).normal(size=(60, 3))
    regressor = ImageRegressor(tmp_path / "run", max_trials=1, refit=False).fit(x, 1.7e9 + x[:, 0])
    assert export(regressor, tmp_path / "net.py").error < 1e-5

    def read_shifted(file: Path) -> Any:
        network = module._read_source(file)
        return lambda x: network(x) + 0.1

    monkeypatch.setitem(module._WRITERS, ".py", (module._write_source, read_shifted))
    with pytest.raises(ExportError, match="computes something else"):
        export(regressor, tmp_path / "other.py")


def test_source_compiles_and_passes_ruff(fitted_classifier: ImageClassifier, tmp_path: Path) -> None:
    file = export(fitted_classifier, tmp_path / "net.py").files[0]
    compile(file.read_text(), str(file), "exec")
    ruff = Path(sys.executable).with_name("ruff")
    if ruff.exists():
        subprocess.run([ruff, "check", "--isolated", "--select", "E9,F", file], check=True)


def test_existing_file_is_kept_unless_overwrite(fitted_classifier: ImageClassifier, tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.with_suffix(".safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match=r"net\.safetensors exists already"):
        export(fitted_classifier, file)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    export(fitted_classifier, file, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.py", "net.safetensors"]


def test_failed_export_leaves_no_files(
    fitted_classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"must end in \.py, \.pt2, \.onnx, not .*net\.h5"):
        export(fitted_classifier, tmp_path / "net.h5")
    with pytest.raises(ValueError, match="must be a fitted ImageClassifier"):
        export(3, tmp_path / "net.py")  # type: ignore[arg-type]
    with pytest.raises(NotFittedError):
        export(ImageClassifier(), tmp_path / "net.py")
    with pytest.raises(RunError, match="holds no run"):
        export(tmp_path, tmp_path / "net.py")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        export(fitted_classifier, tmp_path / "file" / "net.py")

    def reader_with_outputs(outputs: torch.Tensor) -> Any:
        return lambda _: lambda x: outputs.expand(len(x), -1)

    for wrong in (torch.zeros(3), torch.full((3,), torch.nan), torch.zeros(7)):
        monkeypatch.setitem(module._WRITERS, ".py", (module._write_source, reader_with_outputs(wrong)))
        with pytest.raises(ExportError, match="computes something else"):
            export(fitted_classifier, tmp_path / "new" / "folder" / "net.py")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_missing_onnx_error_names_the_extra(
    fitted_classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[onnx\]' in your clone"):
        export(fitted_classifier, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_labels_without_literal_become_text() -> None:
    assert [module._literal(label) for label in (1, 2.5, True, None, "a", float("nan"), (1, 2), b"x")] == [
        1, 2.5, True, None, "a", "nan", "(1, 2)", "b'x'",
    ]  # fmt: skip
