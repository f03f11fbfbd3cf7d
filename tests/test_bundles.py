"""What a bundle for a problem report contains, and what it does not."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, make_scorer

import morphnas
from morphnas import bundles
from morphnas.estimators.settings import plain
from morphnas.run.files import RunError
from morphnas.run.store import Store
from morphnas.train.recipe import Outcome
from tests.estimators.conftest import stripes
from tests.run.doubles import GOOD, files, proposals, store_of, weights

TINY = {"default_model_width": 2, "default_model_len": 1, "trainer_args": {"epochs": 2, "precision": "float32"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose labels are secret, and named in a finding. Not to be changed."""
    path = Path(tmp_path_factory.mktemp("bundles")) / "run"
    x, y = stripes(90)
    x[1] = x[0]
    labels = np.array(["secret-A", "secret-B", 'secret "\u00e9"'])[y]
    classifier = morphnas.ImageClassifier(path, max_trials=2, random_state=0, searcher_args=TINY, refit=False)
    with pytest.warns(morphnas.DataWarning, match="secret"):
        classifier.fit(x, labels, time_limit=60)
    return path


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


def held(file: Path) -> dict[str, bytes]:
    """The contents of the files in a zip."""
    with zipfile.ZipFile(file) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def told(path: Any, tmp_path: Path) -> dict[str, str]:
    """The texts of a bundle."""
    return {name: data.decode() for name, data in held(morphnas.bundle(path, tmp_path / "told.zip")).items()}


def failing(path: Path, *errors: str | None, status: Any = "failed") -> None:
    with store_of(path) as store:
        for proposal, error in zip(proposals(len(errors)), errors, strict=True):
            store.finish(store.claim(proposal).id, Outcome(status, error=error), None)


def test_it_holds_what_happened(run: Path, tmp_path: Path) -> None:
    found = told(run, tmp_path)
    trials = [f"trials/{i:05d}/{name}.json" for i in (0, 1) for name in ("proposal", "trial")]
    assert list(found) == ["about.txt", "files.txt", "model/model.json", "run.json", *trials]
    for name in trials:
        assert found[name] == (run / name).read_text()
    assert "networks: 2 (2 finished)" in found["about.txt"]
    assert f"morphnas: {morphnas.__version__}\n" in found["about.txt"]
    assert "no network has failed" in found["about.txt"]
    size = (run / "trials/00000/weights.safetensors").stat().st_size
    assert f"trials/00000/weights.safetensors: {size:,} bytes" in found["files.txt"]


def test_of_what_is_private_only_the_number_is_told(run: Path, tmp_path: Path) -> None:
    """Fails if anything else is left out, or anything new is included."""
    found = told(run, tmp_path)
    assert not [name for name, text in found.items() if "secret" in text]
    about, before = json.loads(found["run.json"]), json.loads((run / "run.json").read_text())
    assert about.keys() == before.keys()
    assert [name for name in about if about[name] != before[name]] == ["scales", "findings", "host"]
    assert about["scales"] == "1 left out", "means of data"
    assert before["findings"]["found"]
    assert {**about["findings"], "found": []} == {**before["findings"], "found": []}
    kinds = [{"kind": one["kind"], "warns": one["warns"]} for one in before["findings"]["found"]]
    rest = {"text": "left out", "numbers": "left out"}
    assert [{**one, "numbers": "left out"} for one in about["findings"]["found"]] == [one | rest for one in kinds]
    model, before = json.loads(found["model/model.json"]), json.loads((run / "model/model.json").read_text())
    assert [name for name in model if model[name] != before[name]] == ["target", "mean", "std", "range"]
    assert model["target"] == {"dtype": "str", "values": "3 left out"}
    assert model["mean"] == "1 left out"


def test_functions_that_may_name_labels_are_private(tmp_path: Path) -> None:
    scorer = make_scorer(f1_score, pos_label="Miller")
    for metric, told_of in ((scorer, "left out"), ("f1", "f1"), (None, None)):
        described = {"metric": None if metric is None else plain(metric), "loss": plain(scorer), "keep": "all"}
        Store.create(tmp_path / "run", {"settings": described, "decides": described}, overwrite=True).close()
        found = json.loads(told(tmp_path / "run", tmp_path)["run.json"])
        assert found["settings"] == found["decides"] == {"metric": told_of, "loss": "left out", "keep": "all"}


def test_so_are_their_names_in_what_networks_were_scored_by(tmp_path: Path) -> None:
    with store_of(tmp_path / "run") as store:
        for measure in ("recall_of_Miller", "f1_macro", "accuracy"):
            store.finish(store.claim(proposals(1)[0]).id, replace(GOOD, measure=measure, objective=measure), None)
    found = told(tmp_path / "run", tmp_path)
    assert not [name for name, text in found.items() if "Miller" in text]
    outcomes = [json.loads(text)["outcome"] for name, text in sorted(found.items()) if name.endswith("trial.json")]
    names = ["left out", "f1_macro", "accuracy"]
    assert [outcome["measure"] for outcome in outcomes] == [outcome["objective"] for outcome in outcomes] == names


def test_amounts_and_columns_are_private(tmp_path: Path) -> None:
    with store_of(tmp_path / "run") as store:
        trial = store.finish(store.claim(proposals(1)[0]).id, GOOD, weights())
        target = {"amounts": {"mean": [52345.0], "std": [1.0]}}
        store.write_model(store.network(trial.id), {"target": target, "preprocessing": {"columns": ["salary"]}})
    found = told(tmp_path / "run", tmp_path)["model/model.json"]
    assert "salary" not in found
    assert "52345" not in found


def test_no_weights_no_checkpoints_and_nothing_of_others(copied: Path, tmp_path: Path) -> None:
    for name in ("trials/00000/checkpoint.safetensors", "morphnas-12345678/task.pt", "patients.json", "x.npz"):
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_bytes(b"private")
    found = told(copied, tmp_path)
    assert all(name.endswith((".json", ".txt")) for name in found)
    assert not [name for name, text in found.items() if "private" in text or "patients" in text]
    assert "checkpoint.safetensors: 7 bytes" in found["files.txt"]


def test_why_networks_failed(tmp_path: Path) -> None:
    failing(tmp_path / "run", "Traceback\n  ValueError: no", "other", "Traceback\n  ValueError: no", None)
    about = told(tmp_path / "run", tmp_path)["about.txt"]
    assert "networks: 4 (4 failed)" in about
    assert "network 0 (start), 2 (start): failed\n    Traceback\n      ValueError: no\n" in about
    assert "network 1 (start): failed\n    other\n" in about
    assert "network 3 (start): failed\n    no error was recorded\n" in about


@pytest.mark.parametrize("status", ["oom", "diverged"])
def test_other_failures_are_told_as_such(status: str, tmp_path: Path) -> None:
    failing(tmp_path / "run", "why", status=status)
    about = told(tmp_path / "run", tmp_path)["about.txt"]
    assert f"network 0 (start): {status}\n    why\n" in about


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("HOME/code/net.py", "~/code/net.py"),
        ("File 'HOME'", "File '~'"),
        ("a\nHOME/x\t/home/jane/y\nHOME", "a\n~/x\t~/y\n~"),
        ("HOME-other/x, /srvHOME", "HOME-other/x, /srvHOME"),
        ("/home/jane/run, /Users/j.doe/x", "~/run, ~/x"),
        ("C:\\Users\\jane\\run 'C:\\\\Users\\\\jane'", "~\\run '~'"),
        ("/data/alice/run /tmp/of-alice/x", "/data/user/run /tmp/of-user/x"),
        ("malice, alice and /alices", "malice, alice and /alices"),
    ],
)
def test_homes_and_names_are_hidden(before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "h\u00f6me" / "alice"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "alice")
    failing(tmp_path / "run", before.replace("HOME", str(home)))
    found = told(tmp_path / "run", tmp_path)
    expected = after.replace("HOME", str(home)).replace("/alice", "/user" if "HOME" in after else "/alice")
    assert json.loads(found["trials/00000/trial.json"])["outcome"]["error"] == expected
    assert "    " + expected.replace("\n", "\n    ") in found["about.txt"]


def test_a_home_that_is_a_link_and_a_run_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    failing(tmp_path / "link" / "run", f"at {tmp_path / 'real' / 'x'}")
    found = told(tmp_path / "link" / "run", tmp_path)
    assert "run's folder: ~/run" in found["about.txt"]
    assert "    at ~/x" in found["about.txt"]


@pytest.mark.parametrize("home", ["/", None])
def test_a_user_without_a_home(home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        if home is None:
            raise RuntimeError("no home")
        return Path(home)

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setattr(getpass, "getuser", lambda: {"name": "jane"}["user"])
    failing(tmp_path / "run", "at /opt/x")
    assert "    at /opt/x\n" in told(tmp_path / "run", tmp_path)["about.txt"]


# -- runs that are not whole


@pytest.mark.parametrize("name", ["run.json", "model/model.json"])
def test_where_labels_cannot_be_told_letters_are_hidden(name: str, copied: Path, tmp_path: Path) -> None:
    data = (copied / name).read_bytes()
    for damaged in (
        data[:-5],
        data[9:],
        b"\x00" * 100 + data[100:],
        data.replace(b'": ', b'" ', 1),
        b"[" + data + b"]",
    ):
        (copied / name).write_bytes(damaged)
        found = told(copied, tmp_path)
        assert "secret" not in found[name]
        assert '"trial": ' in found[name] or '"best": ' in found[name]
        assert len(found[name].encode("utf-8", "surrogateescape")) == len(damaged)
        assert f"{name} is not JSON" in found["about.txt"]
    (copied / name).write_text(data.decode().replace('"target"', '"tarfet"').replace('"findings"', '"fundings"'))
    assert not [text for text in told(copied, tmp_path).values() if "secret" in text]


def test_damaged_trials_are_there_as_they_are(copied: Path, tmp_path: Path) -> None:
    damaged = b'{"format": 1,\xff\x00'
    (copied / "trials/00001/trial.json").write_bytes(damaged)
    found = held(morphnas.bundle(copied, tmp_path / "a.zip"))
    assert found["trials/00001/trial.json"] == damaged
    assert "trial 00001 in" in found["about.txt"].decode()


@pytest.mark.parametrize(
    "lost", ["run.json", "model", "trials", "trials/00000/proposal.json", "trials/00000/trial.json"]
)
def test_what_is_lost_costs_itself_alone(lost: str, copied: Path, tmp_path: Path) -> None:
    whole = set(told(copied, tmp_path))
    shutil.rmtree(copied / lost) if (copied / lost).is_dir() else (copied / lost).unlink()
    assert set(told(copied, tmp_path)) == {name for name in whole if not f"{name}/".startswith(f"{lost}/")}


def test_a_run_of_another_version(copied: Path, tmp_path: Path) -> None:
    about = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps(about | {"format": 99}))
    found = told(copied, tmp_path)
    assert "has format 99, but this version reads 1" in found["about.txt"]
    assert "trials/00001/trial.json" in found


def test_a_run_that_is_being_written(tmp_path: Path) -> None:
    with store_of(tmp_path / "run") as store:
        store.claim(proposals(1)[0])
        before = files(tmp_path / "run")
        found = told(tmp_path / "run", tmp_path)
        assert files(tmp_path / "run") == before
    assert "networks: 1 (1 running)" in found["about.txt"]
    assert "trials/00000/proposal.json" in found


def test_an_estimator_whose_fit_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(Store, "finish", broken)
    classifier = morphnas.ImageClassifier(tmp_path / "run", searcher_args=TINY, max_trials=1)
    with pytest.raises(RunError, match="the disk is full"):
        classifier.fit(*stripes(60), time_limit=60)
    assert "1 running" in told(classifier, tmp_path)["about.txt"]


@pytest.mark.skipif(os.name != "posix", reason="links and pipes the POSIX way")
def test_nothing_elsewhere_is_read_and_nobody_waits(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_text('{"private": 1}')
    (copied / "trials/00000/trial.json").unlink()
    (copied / "trials/00000/trial.json").symlink_to(tmp_path / "elsewhere.json")
    (copied / "trials/00001/trial.json").unlink()
    os.mkfifo(copied / "trials/00001/trial.json")
    found = told(copied, tmp_path)
    assert not [text for text in found.values() if "private" in text]
    assert "leads out of" in found["about.txt"]
    assert "it is not a file" in found["about.txt"]


def test_its_size_is_bounded_and_failures_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with store_of(tmp_path / "run") as store:
        for i, proposal in enumerate(proposals(6)):
            outcome = Outcome("failed", error="no") if i == 0 else GOOD
            store.finish(store.claim(proposal).id, outcome, None)
    (tmp_path / "run/trials/00003/trial.json").write_text("x" * 5000)
    monkeypatch.setattr(bundles, "MAX_FILE_BYTES", 4000)
    monkeypatch.setattr(bundles, "MAX_TOTAL_BYTES", 8000)
    found = told(tmp_path / "run", tmp_path)
    assert sum(len(text) for name, text in found.items() if name.endswith(".json")) <= 8000
    assert "trials/00000/trial.json" in found
    assert "trials/00001/trial.json" not in found
    assert "trials/00003/trial.json is too large" in found["about.txt"]
    assert "is left out: there is no room for it" in found["about.txt"]


def test_thousands_of_errors_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "ERROR_TEXT", 1000)
    failing(tmp_path / "run", *(f"{i}" * 3000 for i in range(10, 30)))
    about = told(tmp_path / "run", tmp_path)["about.txt"]
    assert len(about) < 10_000
    assert re.search(r"network 7 \(start\): failed\n    (17){100}\n", about)


# -- the file


def test_an_earlier_bundle_is_replaced_and_nothing_else(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "run.ZIP"
    assert morphnas.bundle(morphnas.load_run(run), out) == out
    assert morphnas.bundle(str(run), str(out)) == out
    assert [file.name for file in out.parent.iterdir()] == ["run.ZIP"]
    for other in ("data.zip", "text.zip", "folder.zip"):
        file = tmp_path / other
        if other == "data.zip":
            with zipfile.ZipFile(file, "w") as opened:
                opened.writestr("x", "y")
        elif other == "text.zip":
            file.write_text("text")
        else:
            file.mkdir()
        before = file.read_bytes() if file.is_file() else None
        with pytest.raises(FileExistsError, match="exists already and is not a bundle"):
            morphnas.bundle(run, file)
        assert before is None or file.read_bytes() == before
    with pytest.raises(ValueError, match=r"must end in \.zip"):
        morphnas.bundle(run, tmp_path / "run.tar")
    (tmp_path / "file").write_text("text")
    with pytest.raises(RunError, match=r"file/a\.zip cannot be written"):
        morphnas.bundle(run, tmp_path / "file" / "a.zip")


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        morphnas.bundle(tmp_path, tmp_path / "a.zip")
    with pytest.raises(ValueError, match="the folder of a run, not"):
        morphnas.bundle(3, tmp_path / "a.zip")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
