"""Exports: loaded without morphnas, they compute the same; bad input leaves nothing behind."""

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

import morphnas
from morphnas import ExportError, ImageClassifier, ImageRegressor, Network, RunError, export, load_run
from morphnas import exports as module
from morphnas.exports import to_source
from morphnas.graph import Conv, GlobalPool, Graph, fresh_weights, mlp
from tests.estimators.conftest import stripes
from tests.strategies import graphs, plain

EVIL = '"""\nimport os\nos.abort() # \\'


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> ImageClassifier:
    """Fitted to images whose labels are hard to write as source. Not to be changed."""
    x, y = stripes(150)
    path = tmp_path_factory.mktemp("runs") / "run"
    args = {"default_model_width": 4, "default_model_len": 1, "trainer_args": {"epochs": 1}}
    classifier = ImageClassifier(path, max_trials=1, random_state=0, device="cpu", searcher_args=args, refit=False)
    return classifier.fit(x, np.array([EVIL, "{brace}", "'q'"])[y], time_limit=20)


@pytest.mark.skipif(os.name != "posix", reason="modes the POSIX way")
def test_who_may_read_the_source_may_read_its_weights(fitted: ImageClassifier, tmp_path: Path) -> None:
    made = export(fitted, tmp_path / "net.py").files
    assert len({file.stat().st_mode for file in made}) == 1


ALONE = """
    import sys
    class Refuse:
        def find_spec(self, name, *args):
            if name.partition(".")[0] == "morphnas":
                raise ImportError("not here")
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


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["py", "pt2", "onnx"])
def test_it_computes_the_same_where_there_is_no_morphnas(suffix: str, fitted: ImageClassifier, tmp_path: Path) -> None:
    if suffix == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)
    done = export(fitted, tmp_path / "new" / f"it's {{a}} net.{suffix}")
    assert done.error <= 1e-5
    assert done.files[0] == tmp_path / "new" / f"it's {{a}} net.{suffix}"
    assert sorted(done.files) == sorted((tmp_path / "new").iterdir())
    x = torch.from_numpy(stripes(37)[0]).float()[:, None]
    save_file({"x": x}, tmp_path / "x.safetensors")
    command = [sys.executable, "-c", textwrap.dedent(ALONE), str(done.files[0]), str(tmp_path / "x.safetensors")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    logits, labels = json.loads(out)
    assert labels == fitted.classes_.tolist()
    expected = fitted.predict_proba(stripes(37)[0])
    assert torch.tensor(logits).double().softmax(1).numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("suffix", ["py", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("pt2", "onnx"))])
def test_rows_that_float32_would_round_are_read_in_full(suffix: str, tmp_path: Path) -> None:
    if suffix == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)
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
    save_file({"x": torch.from_numpy(x)}, tmp_path / "x.safetensors")
    command = [sys.executable, "-c", textwrap.dedent(ALONE), str(file), str(tmp_path / "x.safetensors")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert torch.tensor(json.loads(out)[0]).double().softmax(1).numpy() == pytest.approx(expected, abs=1e-5)


@settings(max_examples=25)
@given(graph=graphs(morphs=4), seed=st.integers(0, 99))
def test_the_source_of_any_network_computes_the_same(graph: Graph, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    network = Network(graph, fresh_weights(graph, random)).to_module().eval()
    source = to_source(network, "A network", None, "weights")
    assert "morphnas" not in source.partition("class Network")[2]
    names: dict[str, Any] = {"__file__": "network.py"}
    exec(compile(source, "network.py", "exec"), names)
    alone = names["Network"]()
    alone.load_state_dict(network.state_dict())
    x = torch.randn(3, *graph.shapes[graph.input.name], generator=random)
    with torch.no_grad():
        assert torch.equal(alone.eval()(x), network(x))


def test_a_run_and_a_network_can_be_exported(fitted: ImageClassifier, tmp_path: Path) -> None:
    first = export(fitted.path_, tmp_path / "a.py")
    run = load_run(fitted.path_)
    assert export(run, tmp_path / "b.py").files[0].read_text().replace("b.saf", "a.saf") == first.files[0].read_text()
    bare = export(run.load_best_model(), tmp_path / "c.py").files[0].read_text()
    assert "LABELS" not in bare
    assert "preprocessed examples" in bare
    assert str(first).startswith(str(tmp_path / "a.py"))
    start = export(run, tmp_path / "d.py", trial=0).files[0].read_text()
    assert f"{run.trial(0).graph.parameters:,} parameters" in start
    assert "raw examples" in start
    with pytest.raises(ValueError, match="of a run to export, not of a Network"):
        export(run.load_best_model(), tmp_path / "e.py", trial=0)


def test_a_layer_that_is_not_of_torch_has_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conv, "module", lambda self, *_: Own(1, self.filters, 3, bias=False, padding=1))
    graph = plain(Conv(3), GlobalPool(), shape=(1, 8, 8))
    with pytest.raises(ExportError, match=r"Own: a layer that is not PyTorch's .* but as \.pt2 or \.onnx"):
        export(Network(graph, fresh_weights(graph)), tmp_path / "a.py")
    assert not list(tmp_path.iterdir())
    export(Network(graph, fresh_weights(graph)), tmp_path / "a.pt2")


class Own(torch.nn.Conv2d):
    """A layer of a user's own."""


def test_what_a_network_gives_is_said_with_its_positions(tmp_path: Path) -> None:
    graph = plain(Conv(3), shape=(2, 8, 8))
    source = export(Network(graph, fresh_weights(graph)), tmp_path / "net.py").files[0].read_text()
    assert "Takes preprocessed examples, as the network was trained on: (n, 2, 8, 8)," in source
    assert "Gives logits (n, 3, 8, 8)." in source


def test_what_a_network_takes_is_said_with_its_kind(fitted: ImageClassifier, tmp_path: Path) -> None:
    assert "any real dtype" in export(fitted, tmp_path / "fitted.py").files[0].read_text()
    graph = mlp((3,), 2, depth=1)
    weights = {name: w.double() if w.is_floating_point() else w for name, w in fresh_weights(graph).items()}
    file = export(Network(graph, weights), tmp_path / "net.py").files[0]
    assert "(n, 3), float32." in file.read_text()
    assert runpy.run_path(str(file))["load"]()(torch.zeros(1, 3)).dtype == torch.float32


def test_one_output_that_is_nearly_0_is_measured_by_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the first batch, of one example: rounding that is small relative to other outputs is large relative to it."""
    graph = mlp((3,), 1, depth=0)
    weights = fresh_weights(graph)
    first = Network(graph, weights).to_module()(torch.randn(1, 3, generator=torch.Generator().manual_seed(1)))
    weights["dense_1.bias"] -= first.detach()[0] - 1e-6

    def rounding(file: Path) -> Any:
        network = module._read_source(file)
        return lambda x: network(x) + 1e-7

    monkeypatch.setitem(module._WRITERS, ".py", (module._write_source, rounding))
    assert 0 < export(Network(graph, weights), tmp_path / "net.py").error < 1e-5


def test_differences_of_amounts_are_measured_beside_their_spread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not relative to the outputs: for times in seconds, all of them could be wrong."""
    x = np.random.default_rng(0).normal(size=(60, 3))
    fitted = ImageRegressor(tmp_path / "run", max_trials=1, refit=False).fit(x, 1.7e9 + x[:, 0])
    assert export(fitted, tmp_path / "net.py").error < 1e-5

    def shifting(file: Path) -> Any:
        network = module._read_source(file)
        return lambda x: network(x) + 0.1

    monkeypatch.setitem(module._WRITERS, ".py", (module._write_source, shifting))
    with pytest.raises(ExportError, match="computes something else"):
        export(fitted, tmp_path / "other.py")


def test_source_is_tidy(fitted: ImageClassifier, tmp_path: Path) -> None:
    file = export(fitted, tmp_path / "net.py").files[0]
    compile(file.read_text(), str(file), "exec")
    ruff = Path(sys.executable).with_name("ruff")
    if ruff.exists():
        subprocess.run([ruff, "check", "--isolated", "--select", "E9,F", file], check=True)


def test_what_is_there_is_not_overwritten(fitted: ImageClassifier, tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.with_suffix(".safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match=r"net\.safetensors exists already"):
        export(fitted, file)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    export(fitted, file, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.py", "net.safetensors"]


def test_bad_input_leaves_nothing_behind(
    fitted: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"must end in \.py, \.pt2, \.onnx, not .*net\.h5"):
        export(fitted, tmp_path / "net.h5")
    with pytest.raises(ValueError, match="must be a fitted ImageClassifier"):
        export(3, tmp_path / "net.py")  # type: ignore[arg-type]
    with pytest.raises(NotFittedError):
        export(ImageClassifier(), tmp_path / "net.py")
    with pytest.raises(RunError, match="holds no run"):
        export(tmp_path, tmp_path / "net.py")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        export(fitted, tmp_path / "file" / "net.py")

    def autocast_to(found: torch.Tensor) -> Any:
        return lambda _: lambda x: found.expand(len(x), -1)

    for wrong in (torch.zeros(3), torch.full((3,), torch.nan), torch.zeros(7)):
        monkeypatch.setitem(module._WRITERS, ".py", (module._write_source, autocast_to(wrong)))
        with pytest.raises(ExportError, match="computes something else"):
            export(fitted, tmp_path / "new" / "folder" / "net.py")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_onnx_the_error_says_what_to_install(
    fitted: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[onnx\]' in your clone"):
        export(fitted, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_labels_that_source_cannot_say_are_texts() -> None:
    assert [module._literal(label) for label in (1, 2.5, True, None, "a", float("nan"), (1, 2), b"x")] == [
        1, 2.5, True, None, "a", "nan", "(1, 2)", "b'x'",
    ]  # fmt: skip
    assert morphnas.export is export
