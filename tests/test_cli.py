"""The command line: the text and JSON output of every command, and errors in one line."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import morphnas
from morphnas import ImageClassifier, load_run
from morphnas.cli import LIMITS, SEARCHES, main
from morphnas.estimators import settings
from morphnas.search import SEARCHERS
from tests.estimators.conftest import stripes

QUICK = ["--time-limit", "60", "--max-trials", "2", "--width", "4", "--seed", "0", "--device", "cpu", "--no-refit"]
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not on the PATH")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz in the Keras layout. Must not be changed."""
    x, y = stripes(150)
    file = Path(tmp_path_factory.mktemp("data")) / "stripes.npz"
    np.savez(file, x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
    return file


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run made by the command line. Must not be changed."""
    path = Path(tmp_path_factory.mktemp("runs")) / "run"
    assert main(["fit", str(data), *QUICK, "--path", str(path), "--quiet"]) == 0
    return path


def test_choices_are_those_of_the_library() -> None:
    assert tuple(sorted(SEARCHERS)) == SEARCHES
    assert LIMITS == settings.LIMITS


def run_command(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Standard output of a successful command."""
    capsys.readouterr()
    assert main(list(map(str, argv))) == 0
    out, err = capsys.readouterr()
    assert "error" not in err
    return out


def run_for_json(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    """The command's output as JSON."""
    return json.loads(run_command(capsys, *argv, "--json"))


def run_for_error(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The error message of a failed command, which must be one line."""
    capsys.readouterr()
    assert main(list(map(str, argv))) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("morphnas: error: ")
    return line.removeprefix("morphnas: error: ")


# -- output


def test_fit_begins_with_network_of_earlier_run(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [word for word in QUICK if word not in ("--width", "4")]
    found = run_for_json(capsys, "fit", data, *quick, "--path", tmp_path / "run", "--begin-with", run, "--quiet")
    first = load_run(found["path"]).trial(0)
    assert first.graph == ImageClassifier.load(run).network_.graph
    assert first.proposal.why["weights"] == "given"
    assert "holds no run" in run_for_error(capsys, "fit", data, *quick, "--begin-with", tmp_path)


def test_fit(run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ("--limit", "max_depth=6", "--limit", "max_params=1e6", "--limit", "morphs=deeper")
    found = run_for_json(capsys, "fit", data, *QUICK, "--path", tmp_path / "other", *limits)
    loaded = load_run(tmp_path / "other")
    assert found["networks"] == len(loaded.trials) == 2
    assert found["best"] == loaded.get_best_model_id()
    x, y = stripes(150)
    assert found["test_accuracy"] == ImageClassifier.load(tmp_path / "other").evaluate(x[:30], y[:30])
    assert loaded.about["decides"]["limits"]["morphs"] == ["deeper"]
    error = run_for_error(capsys, "fit", data, *QUICK, "--path", run, "--quiet")
    assert "run" in error
    assert "resume" in error
    assert f"the run is in {run}" in run_command(capsys, "fit", data, *QUICK, "--path", run, "--resume", "--quiet")


def test_predict_and_evaluate(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = ImageClassifier.load(run)
    x, y = stripes(150)
    rows = list(csv.DictReader(io.StringIO(run_command(capsys, "predict", run, data))))
    assert [int(row["label"]) for row in rows] == classifier.predict(x[:30]).tolist()
    found = run_for_json(capsys, "predict", run, data)
    probabilities = [example["probabilities"] for example in found["examples"]]
    assert np.array(probabilities) == pytest.approx(classifier.predict_proba(x[:30]))
    assert run_for_json(capsys, "evaluate", run, data)["accuracy"] == classifier.evaluate(x[:30], y[:30])


def test_fit_succeeds_if_test_labels_are_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = stripes(60)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:3], y_test=[0, 1, 7])
    capsys.readouterr()
    assert main(["fit", str(tmp_path / "data.npz"), *QUICK, "--path", str(tmp_path / "run"), "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["test_accuracy"] is None
    assert "labels that fit did not see: 7" in err


def test_training_accuracy_is_not_shown_as_validation_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = stripes(40)
    np.savez(tmp_path / "few.npz", x=x, y=y)
    argv = ["fit", tmp_path / "few.npz", *QUICK, "--overwrite", "--path", tmp_path / "run", "--quiet"]
    assert "on its training data, as there are too few examples to hold any out" in run_command(capsys, *argv)
    assert run_for_json(capsys, *argv)["validation_accuracy"] is None
    assert "on the examples that it was trained on" in morphnas.write_report(tmp_path / "run").read_text()


def test_predicted_csv_quotes_special_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = stripes(60)
    labels = np.array(["a,b\r", 'a "line"\nfeed', "carriage\rreturn"])
    np.savez(tmp_path / "data.npz", x=x, y=labels[y])
    run_command(capsys, "fit", tmp_path / "data.npz", *QUICK, "--path", tmp_path / "run", "--quiet")
    text = run_command(capsys, "predict", tmp_path / "run", tmp_path / "data.npz")
    labels_read = [row["label"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert labels_read == ImageClassifier.load(tmp_path / "run").predict(x).tolist()


def test_fit_evaluate_and_predict_image_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    x, y = stripes(60)
    lines = ["file,label"]
    for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
        file = tmp_path / "photos" / f"class{label}" / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(file)
        lines.append(f"class{label}/{i:02}.png,class{label}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    run_command(capsys, "fit", tmp_path / "photos", *QUICK, "--path", tmp_path / "a", "--quiet")
    table = (tmp_path / "labels.csv", "--images", tmp_path / "photos")
    run_command(capsys, "fit", *table, *QUICK, "--path", tmp_path / "b", "--quiet")
    scores = run_for_json(capsys, "evaluate", tmp_path / "a", tmp_path / "photos")
    assert scores == {"accuracy": scores["accuracy"], "examples": 60}
    assert run_for_json(capsys, "evaluate", tmp_path / "a", *table) == scores
    files = sorted((tmp_path / "photos" / "class1").iterdir())
    found = run_for_json(capsys, "predict", tmp_path / "a", *files)["examples"]
    assert [example["example"] for example in found] == list(map(str, files))
    assert {example["label"] for example in found} <= {"class0", "class1", "class2"}
    assert "--images" in run_for_error(capsys, "fit", tmp_path / "labels.csv")
    names = [f"class1/{file.name}" for file in files]
    (tmp_path / "names.csv").write_text("\n".join(["file", *names]))
    listed = (tmp_path / "names.csv", "--images", tmp_path / "photos")
    from_list = run_for_json(capsys, "predict", tmp_path / "a", *listed)["examples"]
    assert [example["example"] for example in from_list] == names
    assert [example["label"] for example in from_list] == [example["label"] for example in found]
    assert "row 2: a file name and a label are needed" in run_for_error(capsys, "fit", *listed)
    files[0].write_text("no image")
    assert str(files[0]) in run_for_error(capsys, "predict", tmp_path / "a", files[0])


def test_info_explain_report_and_compare(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_run(run)
    assert run_for_json(capsys, "info", run)["best"] == loaded.get_best_model_id()
    assert "the best 2 of 2 networks" in run_command(capsys, "info", run)
    assert run_for_json(capsys, "info")["torch"] == torch.__version__
    assert run_for_json(capsys, "explain", run, "--id", 1)[-1]["id"] == 1
    assert "network 0: start" in run_command(capsys, "explain", run, "--id", 0)
    page = run_for_json(capsys, "report", run, "--out", tmp_path / "page.html")
    assert Path(page["file"]).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    shutil.copytree(run, tmp_path / "copy")
    found = run_for_json(capsys, "compare", run, tmp_path / "copy", "--svg", tmp_path / "curves.svg")
    assert found["shared"] == 1
    assert (tmp_path / "curves.svg").exists()


@needs_dot
def test_draw(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--id", 1], ["--id", 1, "--against", 0, "--no-fold"], ["--tree"], ["--lineage"], []):
        found = run_for_json(capsys, "draw", run, *options, "--out", tmp_path / "a.svg")
        assert Path(found["files"][0]).stat().st_size > 500
    shutil.copytree(run, tmp_path / "copy")
    assert len(run_for_json(capsys, "draw", tmp_path / "copy")["files"]) == 3


def test_export(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_for_json(capsys, "export", run, "--out", tmp_path / "net.py")
    assert found["error"] <= 1e-5
    assert [Path(file).exists() for file in found["files"]] == [True, True]
    error = run_for_error(capsys, "export", run, "--out", tmp_path / "net.py")
    assert "exists already: choose another file, or --overwrite" in error  # not the API's overwrite=True
    assert "differ by" in run_command(capsys, "export", run, "--out", tmp_path / "net.py", "--overwrite", "--id", 1)


def test_bundle(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_for_json(capsys, "bundle", run, "--out", tmp_path / "run.zip")
    assert found == {"file": str(tmp_path / "run.zip"), "bytes": (tmp_path / "run.zip").stat().st_size}
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "run.json").write_text("{")
    assert str(tmp_path / "run.zip") in run_command(capsys, "bundle", tmp_path / "copy", "--out", tmp_path / "run.zip")
    with zipfile.ZipFile(tmp_path / "run.zip") as opened:
        assert opened.read("run.json") == b"{"


def test_live_report_is_rewritten_until_fit_ends(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "copy")
    holder = tmp_path / "copy" / "holder"
    holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    page, sleeps = tmp_path / "page.html", []

    def end_fit(seconds: float) -> None:
        sleeps.append((seconds, '"reload":3.0' in page.read_text(encoding="utf-8")))
        holder.unlink()

    monkeypatch.setattr(time, "sleep", end_fit)
    run_command(capsys, "report", tmp_path / "copy", "--live", 3, "--out", page)
    assert sleeps == [(3.0, True)]
    assert '"reload":null' in page.read_text(encoding="utf-8")
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    holder.write_text(f"process {killed.pid} on {socket.gethostname()}")
    run_command(capsys, "report", tmp_path / "copy", "--live", 3, "--out", page)
    assert sleeps == [(3.0, True)]


# -- errors


@pytest.fixture
def paths(run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A run, data, and various invalid inputs in the current folder, by placeholder."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text.txt").write_text("text")
    Path("quote.csv").write_text('file,label\n"a.png,1\n' + 140_000 * "x")
    Path("truncated.npz").write_bytes(data.read_bytes()[:500])
    np.savez("other.npz", z=[1])
    np.savez("single.npz", x_train=1)
    np.savez("unlabelled.npz", x=stripes(30)[0])
    np.save("array.npy", [1])
    Path("array.npy").rename("array.npz")
    np.savez_compressed("flipped.npz", x=stripes(30)[0])
    flipped = bytearray(Path("flipped.npz").read_bytes())
    flipped[200] ^= 255
    Path("flipped.npz").write_bytes(flipped)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (900000, 900000), }\n"
    huge = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    for name, member, content in (("huge.npz", "x.npy", huge), ("bytes.npz", "x", b"text")):
        with zipfile.ZipFile(name, "w") as file:
            file.writestr(member, content)
    return {path.stem.upper(): path for path in Path().iterdir()} | {"DATA": data, "RUN": run}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fit", "none.npz"], "none.npz does not exist"),
        (["fit", "DATA", "--limit", "size=3"], "--limit takes name=value, where name is one of max_params"),
        (["fit", "DATA", "--limit", "max_depth=deep"], "--limit max_depth needs a number, not 'deep'"),
        (["fit", "DATA", "--limit", "max_depth=2.5"], "max_depth must be None or a positive integer, not 2.5"),
        (["fit", "DATA", "--limit", "morphs=sideways"], "unknown morphs ['sideways']"),
        (["fit", "DATA", "--time-limit", "-1"], "time_limit must be a positive number"),
        (["fit", "DATA", "--device", "tpu"], "tpu"),
        (["fit", "DATA", "--images", "FOLDER"], "--images gives the folder of files listed in a .csv, but "),
        (["fit", "FOLDER", "--images", "FOLDER"], "but folder is not a .csv: leave it out"),
        (["fit", "DATA", "--width", "0"], "default_model_width must be a positive integer, not 0"),
        (["fit", "DATA", "--width", "4", "--begin-with", "RUN"], "--width and --begin-with exclude each other"),
        (["evaluate", "RUN", "DATA", "--images", "FOLDER"], "stripes.npz is not a .csv: leave it out"),
        (["predict", "RUN", "text.txt", "--images", "FOLDER"], "text.txt is not a .csv: leave it out"),
        (["fit", "TEXT"], "text.txt is not an .npz, a .csv or a folder of images"),
        (["fit", "TRUNCATED"], "truncated.npz cannot be read as .npz"),
        (["fit", "OTHER"], "other.npz has neither x_train nor x"),
        (["fit", "UNLABELLED"], "unlabelled.npz holds no labels"),
        (["fit", "ARRAY"], "array.npz cannot be read as .npz"),
        (["fit", "FLIPPED"], "flipped.npz cannot be read as .npz"),
        (["fit", "HUGE"], "huge.npz cannot be read as .npz: Unable to allocate"),
        (["fit", "BYTES"], "bytes.npz cannot be read as .npz: it holds something else than arrays"),
        (["fit", "SINGLE"], "x_train of single.npz is a single value"),
        (["fit", "QUOTE", "--images", "FOLDER"], "quote.csv' cannot be read as CSV"),
        (["evaluate", "FOLDER", "DATA"], "holds no run"),
        (["evaluate", "RUN", "UNLABELLED"], "holds no labels"),
        (["predict", "RUN", "none.png"], "none.png does not exist"),
        (["predict", "RUN", "DATA", "DATA"], "give one .npz"),
        (["info", "none"], "holds no run"),
        (["info", "RUN", "--networks", "0"], "--networks must be at least 1, not 0"),
        (["explain", "RUN", "--id", "9"], "there is no model 9"),
        (["report", "RUN", "--out", "text.txt/page.html"], "text.txt"),
        (["report", "RUN", "--live", "0"], "--live needs seconds above 0"),
        (["report", "RUN", "--live", "1e11"], "--live needs seconds above 0, at most 86,400"),
        (["draw", "RUN", "--lineage", "--against", "0", "--out", "a.svg"], "--lineage draws how a network came about"),
        (["draw", "RUN", "--out", "a.gif"], "must end in .pdf"),
        (["draw", "RUN", "--tree"], "give the file to draw to with --out"),
        (["draw", "RUN", "--tree", "--id", "0", "--out", "a.svg"], "--tree draws all networks"),
        (["draw", "RUN", "--against", "0"], "give the file to draw to with --out"),
        (["compare", "RUN"], "at least two runs"),
        (["export", "RUN", "--out", "net.h5"], "must end in .py"),
        (["bundle", "RUN", "--out", "run.txt"], "must end in .zip"),
        (["bundle", "FOLDER", "--out", "run.zip"], "holds no run"),
    ],
)  # fmt: skip
def test_error_is_one_line(
    argv: list[str], message: str, paths: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert message in run_for_error(capsys, *(paths.get(argument, argument) for argument in argv))
    assert sorted(Path().rglob("*")) == before, "files were left behind"


USAGE_ERRORS = [
    "",
    "unknown",
    "fit",
    "fit a --search best",
    "export run",
    "draw run --tree --lineage",
    "fit a --image-size big",
    "fit a --image-size 12x",
]


@pytest.mark.parametrize("argv", USAGE_ERRORS)
def test_usage_error_exits_with_status_2(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv.split())
    assert ended.value.code == 2
    assert "usage: morphnas" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["fit", "evaluate", "predict", "info", "explain", "report", "draw", "compare", "export", "bundle"]
)
def test_help_has_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"examples:\n  morphnas {name}" in capsys.readouterr().out


def test_debug_option_raises_the_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        main(["info", str(tmp_path), "--debug"])


# -- in a subprocess


ROOT = Path(__file__).parent.parent


def command_line(*argv: object) -> list[str]:
    return [sys.executable, "-m", "morphnas", *map(str, argv)]


def run_program(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command_line(*argv), capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


@pytest.mark.slow
def test_every_command_in_a_subprocess(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for argv in (
        ["fit", data, *QUICK, "--path", run],
        ["evaluate", run, data],
        ["predict", run, data],
        ["info", run],
        ["explain", run],
        ["report", run],
        ["draw", run, "--out", tmp_path / "net.dot"],
        ["fit", data, *QUICK, "--path", tmp_path / "other", "--seed", 1],
        ["compare", run, tmp_path / "other"],
        ["export", run, "--out", tmp_path / "net.py"],
        ["bundle", run, "--out", tmp_path / "run.zip"],
    ):
        done = run_program(*argv, "--json")
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)
    wrong = run_program("evaluate", tmp_path, data)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "holds no run" in wrong.stderr
    assert run_program("predict", run, "--unknown").returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_fit_leaves_a_model(number: signal.Signals, data: Path, tmp_path: Path) -> None:
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also in background processes
    code = f"{handler}; from morphnas.cli import main; raise SystemExit(main())"
    argv = [sys.executable, "-c", code, *command_line("fit", data, "--time-limit", 300, "--width", 4)[3:]]
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*argv, "--path", str(tmp_path / "run")], **pipes, cwd=ROOT) as fit:
        assert fit.stderr is not None
        for line in fit.stderr:
            if line.startswith("trial 1:"):
                break
        fit.send_signal(number)
        out, err = fit.communicate(timeout=60)
    assert fit.returncode == (0 if number == signal.SIGINT else 143), err
    assert "morphnas: warning: interrupted: the model is the best network so far" in err
    if number == signal.SIGINT:
        assert f"the run is in {tmp_path / 'run'}" in out
    assert run_program("evaluate", tmp_path / "run", data).returncode == 0


@pytest.mark.slow
def test_closed_stdout_is_no_error(run: Path, data: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        argv = command_line("predict", run, data)
        done = subprocess.run(argv, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_fit_arguments_are_passed_to_estimator(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an estimator that does not train, but records all arguments."""
    recorded: dict[str, Any] = {}

    class Recording(ImageClassifier):
        def fit(self, *data: Any, **arguments: Any) -> Any:
            recorded.update(self.get_params(deep=False) | arguments)
            raise ValueError("recorded")

    monkeypatch.setattr(morphnas, "ImageClassifier", Recording)
    options = "--time-limit 7 --overwrite --axes 2 --balanced --search-patience 3 --metric f1_macro --search greedy"
    options += " --max-trials 4 --seed 5 --device cpu --executor process --devices 2 --width 6 --ensemble 8 --no-refit"
    options += " --image-size 12x16 --no-augment"
    argv = ["fit", data, *options.split(), "--path", tmp_path / "run", "--limit", "max_depth=9"]
    assert run_for_error(capsys, *argv) == "recorded"
    expected = {
        "time_limit": 7, "overwrite": True, "resume": False, "axes": 2, "sample_weight": "balanced",
        "search_patience": 3, "metric": "f1_macro", "search_type": "greedy", "max_trials": 4, "random_state": 5,
        "device": "cpu", "executor": "process", "devices": 2, "searcher_args": {"default_model_width": 6},
        "ensemble": 8, "refit": False, "path": str(tmp_path / "run"), "limits": {"max_depth": 9}, "teacher": None,
        "verbose": True, "initial_networks": None, "image_size": (12, 16), "augment": False,
    }  # fmt: skip
    assert {name: recorded[name] for name in expected} == expected
