"""What a bundle for a problem report contains, and what it leaves out."""

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
from tests.run.doubles import FINISHED, file_contents, new_store, proposals, weights

TINY = {"default_model_width": 2, "default_model_len": 1, "trainer_args": {"epochs": 2, "precision": "float32"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose labels contain "secret", and occur in a finding. Must not be changed."""
    path = Path(tmp_path_factory.mktemp("bundles")) / "run"
    x, y = stripes(90)
    x[1] = x[0]
    labels = np.array(["secret-A", "secret-B", 'secret "\u00e9"'])[y]
    classifier = morphnas.ImageClassifier(path, max_trials=2, random_state=0, searcher_args=TINY, refit=False)
    with pytest.warns(morphnas.DataWarning, match="secret"):
        classifier.fit(x, labels, time_limit=60)
    return path


@pytest.fixture
def run_copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


def zip_contents(file: Path) -> dict[str, bytes]:
    """The contents of the files in a zip, by name."""
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def bundle_texts(path: Any, tmp_path: Path) -> dict[str, str]:
    """The files of the bundle of a run, by name."""
    return {name: data.decode() for name, data in zip_contents(morphnas.bundle(path, tmp_path / "bundle.zip")).items()}


def make_failed_run(path: Path, *errors: str | None, status: Any = "failed") -> None:
    """A run with a trial for each of the errors."""
    with new_store(path) as store:
        for proposal, error in zip(proposals(len(errors)), errors, strict=True):
            store.finish(store.claim(proposal).id, Outcome(status, error=error), None)


def test_bundle_contains_files_of_run_and_trials(run: Path, tmp_path: Path) -> None:
    found = bundle_texts(run, tmp_path)
    trials = [f"trials/{i:05d}/{name}.json" for i in (0, 1) for name in ("proposal", "trial")]
    assert list(found) == ["about.txt", "files.txt", "model/model.json", "run.json", *trials]
    for name in trials:
        assert found[name] == (run / name).read_text()
    assert "networks: 2 (2 finished)" in found["about.txt"]
    assert f"morphnas: {morphnas.__version__}\n" in found["about.txt"]
    assert "no network has failed" in found["about.txt"]
    size = (run / "trials/00000/weights.safetensors").stat().st_size
    assert f"trials/00000/weights.safetensors: {size:,} bytes" in found["files.txt"]


def test_private_values_are_replaced_by_counts(run: Path, tmp_path: Path) -> None:
    """Also fails if another field is left out, or a new one is included."""
    found = bundle_texts(run, tmp_path)
    assert not [name for name, text in found.items() if "secret" in text]
    about, before = json.loads(found["run.json"]), json.loads((run / "run.json").read_text())
    assert about.keys() == before.keys()
    assert [name for name in about if about[name] != before[name]] == ["scales", "findings", "host"]
    assert about["scales"] == "1 left out"  # means of the data
    assert before["findings"]["found"]
    assert {**about["findings"], "found": []} == {**before["findings"], "found": []}
    left_out = {"text": "left out", "numbers": "left out"}
    expected = [{"kind": f["kind"], "warns": f["warns"], **left_out} for f in before["findings"]["found"]]
    assert [{**f, "numbers": "left out"} for f in about["findings"]["found"]] == expected
    model, before = json.loads(found["model/model.json"]), json.loads((run / "model/model.json").read_text())
    assert [name for name in model if model[name] != before[name]] == ["target", "mean", "std", "range"]
    assert model["target"] == {"dtype": "str", "values": "3 left out"}
    assert model["mean"] == "1 left out"


def test_user_defined_metric_and_loss_are_left_out(tmp_path: Path) -> None:
    """Their descriptions may contain labels."""
    scorer = make_scorer(f1_score, pos_label="Miller")
    for metric, expected in ((scorer, "left out"), ("f1", "f1"), (None, None)):
        described = {"metric": None if metric is None else plain(metric), "loss": plain(scorer), "keep": "all"}
        Store.create(tmp_path / "run", {"settings": described, "decides": described}, overwrite=True).close()
        found = json.loads(bundle_texts(tmp_path / "run", tmp_path)["run.json"])
        assert found["settings"] == found["decides"] == {"metric": expected, "loss": "left out", "keep": "all"}


def test_user_defined_metric_is_left_out_of_outcomes(tmp_path: Path) -> None:
    with new_store(tmp_path / "run") as store:
        for measure in ("recall_of_Miller", "f1_macro", "accuracy"):
            store.finish(store.claim(proposals(1)[0]).id, replace(FINISHED, measure=measure, objective=measure), None)
    found = bundle_texts(tmp_path / "run", tmp_path)
    assert not [name for name, text in found.items() if "Miller" in text]
    outcomes = [json.loads(text)["outcome"] for name, text in sorted(found.items()) if name.endswith("trial.json")]
    names = ["left out", "f1_macro", "accuracy"]
    assert [outcome["measure"] for outcome in outcomes] == [outcome["objective"] for outcome in outcomes] == names


def test_target_statistics_and_column_names_are_left_out(tmp_path: Path) -> None:
    with new_store(tmp_path / "run") as store:
        trial = store.finish(store.claim(proposals(1)[0]).id, FINISHED, weights())
        target = {"amounts": {"mean": [52345.0], "std": [1.0]}}
        store.write_model(store.network(trial.id), {"target": target, "preprocessing": {"columns": ["salary"]}})
    found = bundle_texts(tmp_path / "run", tmp_path)["model/model.json"]
    assert "salary" not in found
    assert "52345" not in found


def test_weights_checkpoints_and_foreign_files_are_left_out(run_copy: Path, tmp_path: Path) -> None:
    for name in ("trials/00000/checkpoint.safetensors", "morphnas-12345678/task.pt", "patients.json", "x.npz"):
        (run_copy / name).parent.mkdir(exist_ok=True)
        (run_copy / name).write_bytes(b"private")
    found = bundle_texts(run_copy, tmp_path)
    assert all(name.endswith((".json", ".txt")) for name in found)
    assert not [name for name, text in found.items() if "private" in text or "patients" in text]
    assert "checkpoint.safetensors: 7 bytes" in found["files.txt"]


def test_about_groups_failed_networks_by_error(tmp_path: Path) -> None:
    make_failed_run(tmp_path / "run", "Traceback\n  ValueError: no", "other", "Traceback\n  ValueError: no", None)
    about = bundle_texts(tmp_path / "run", tmp_path)["about.txt"]
    assert "networks: 4 (4 failed)" in about
    assert "network 0 (start), 2 (start): failed\n    Traceback\n      ValueError: no\n" in about
    assert "network 1 (start): failed\n    other\n" in about
    assert "network 3 (start): failed\n    no error was recorded\n" in about


@pytest.mark.parametrize("status", ["oom", "diverged"])
def test_about_states_status_of_failed_network(status: str, tmp_path: Path) -> None:
    make_failed_run(tmp_path / "run", "why", status=status)
    about = bundle_texts(tmp_path / "run", tmp_path)["about.txt"]
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
def test_home_folders_and_user_names_are_replaced(
    before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "h\u00f6me" / "alice"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "alice")
    make_failed_run(tmp_path / "run", before.replace("HOME", str(home)))
    found = bundle_texts(tmp_path / "run", tmp_path)
    expected = after.replace("HOME", str(home)).replace("/alice", "/user" if "HOME" in after else "/alice")
    assert json.loads(found["trials/00000/trial.json"])["outcome"]["error"] == expected
    assert "    " + expected.replace("\n", "\n    ") in found["about.txt"]


def test_home_folder_behind_symlink_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    make_failed_run(tmp_path / "link" / "run", f"at {tmp_path / 'real' / 'x'}")
    found = bundle_texts(tmp_path / "link" / "run", tmp_path)
    assert "run's folder: ~/run" in found["about.txt"]
    assert "    at ~/x" in found["about.txt"]


@pytest.mark.parametrize("home", ["/", None])
def test_user_without_home_folder_or_name(home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_home() -> Path:
        if home is None:
            raise RuntimeError("no home")
        return Path(home)

    def get_user() -> str:
        raise KeyError("no user")

    monkeypatch.setattr(Path, "home", get_home)
    monkeypatch.setattr(getpass, "getuser", get_user)
    make_failed_run(tmp_path / "run", "at /opt/x")
    assert "    at /opt/x\n" in bundle_texts(tmp_path / "run", tmp_path)["about.txt"]


# -- incomplete and damaged runs


@pytest.mark.parametrize("name", ["run.json", "model/model.json"])
def test_damaged_json_is_masked(name: str, run_copy: Path, tmp_path: Path) -> None:
    data = (run_copy / name).read_bytes()
    for damaged in (
        data[:-5],
        data[9:],
        b"\x00" * 100 + data[100:],
        data.replace(b'": ', b'" ', 1),
        b"[" + data + b"]",
    ):
        (run_copy / name).write_bytes(damaged)
        found = bundle_texts(run_copy, tmp_path)
        assert "secret" not in found[name]
        assert '"trial": ' in found[name] or '"best": ' in found[name]
        assert len(found[name].encode("utf-8", "surrogateescape")) == len(damaged)
        assert f"{name} is not JSON" in found["about.txt"]
    # valid JSON with unknown keys
    (run_copy / name).write_text(data.decode().replace('"target"', '"tarfet"').replace('"findings"', '"fundings"'))
    assert not [text for text in bundle_texts(run_copy, tmp_path).values() if "secret" in text]


def test_damaged_trial_is_included_unchanged(run_copy: Path, tmp_path: Path) -> None:
    damaged = b'{"format": 1,\xff\x00'
    (run_copy / "trials/00001/trial.json").write_bytes(damaged)
    found = zip_contents(morphnas.bundle(run_copy, tmp_path / "a.zip"))
    assert found["trials/00001/trial.json"] == damaged
    assert "trial 00001 in" in found["about.txt"].decode()


@pytest.mark.parametrize(
    "missing", ["run.json", "model", "trials", "trials/00000/proposal.json", "trials/00000/trial.json"]
)
def test_missing_file_does_not_affect_others(missing: str, run_copy: Path, tmp_path: Path) -> None:
    all_names = set(bundle_texts(run_copy, tmp_path))
    shutil.rmtree(run_copy / missing) if (run_copy / missing).is_dir() else (run_copy / missing).unlink()
    assert set(bundle_texts(run_copy, tmp_path)) == {
        name for name in all_names if not f"{name}/".startswith(f"{missing}/")
    }


def test_run_of_unknown_format_is_bundled(run_copy: Path, tmp_path: Path) -> None:
    about = json.loads((run_copy / "run.json").read_text())
    (run_copy / "run.json").write_text(json.dumps(about | {"format": 99}))
    found = bundle_texts(run_copy, tmp_path)
    assert "has format 99, but this version reads 1" in found["about.txt"]
    assert "trials/00001/trial.json" in found


def test_run_in_progress_is_bundled_and_not_changed(tmp_path: Path) -> None:
    with new_store(tmp_path / "run") as store:
        store.claim(proposals(1)[0])
        before = file_contents(tmp_path / "run")
        found = bundle_texts(tmp_path / "run", tmp_path)
        assert file_contents(tmp_path / "run") == before
    assert "networks: 1 (1 running)" in found["about.txt"]
    assert "trials/00000/proposal.json" in found


def test_estimator_whose_fit_failed_is_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(Store, "finish", broken)
    classifier = morphnas.ImageClassifier(tmp_path / "run", searcher_args=TINY, max_trials=1)
    with pytest.raises(RunError, match="the disk is full"):
        classifier.fit(*stripes(60), time_limit=60)
    assert "1 running" in bundle_texts(classifier, tmp_path)["about.txt"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX links and pipes")
def test_links_out_of_the_run_and_pipes_are_not_read(run_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.json").write_text('{"private": 1}')
    (run_copy / "trials/00000/trial.json").unlink()
    (run_copy / "trials/00000/trial.json").symlink_to(tmp_path / "elsewhere.json")
    (run_copy / "trials/00001/trial.json").unlink()
    os.mkfifo(run_copy / "trials/00001/trial.json")
    found = bundle_texts(run_copy, tmp_path)
    assert not [text for text in found.values() if "private" in text]
    assert "points outside" in found["about.txt"]
    assert "it is not a file" in found["about.txt"]


def test_size_is_limited_and_failures_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_store(tmp_path / "run") as store:
        for i, proposal in enumerate(proposals(6)):
            outcome = Outcome("failed", error="no") if i == 0 else FINISHED
            store.finish(store.claim(proposal).id, outcome, None)
    (tmp_path / "run/trials/00003/trial.json").write_text("x" * 5000)
    monkeypatch.setattr(bundles, "MAX_FILE_BYTES", 4000)
    monkeypatch.setattr(bundles, "MAX_TOTAL_BYTES", 7000)
    found = bundle_texts(tmp_path / "run", tmp_path)
    assert sum(len(text) for name, text in found.items() if name.endswith(".json")) <= 7000
    assert "trials/00000/trial.json" in found
    assert "trials/00001/trial.json" not in found
    assert "trials/00003/trial.json is too large" in found["about.txt"]
    assert "is left out: there is no room for it" in found["about.txt"]


def test_long_errors_are_truncated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "ERROR_TEXT", 1000)
    make_failed_run(tmp_path / "run", *(f"{i}" * 3000 for i in range(10, 30)))
    about = bundle_texts(tmp_path / "run", tmp_path)["about.txt"]
    assert len(about) < 10_000
    assert re.search(r"network 7 \(start\): failed\n    (17){100}\n", about)


# -- the output file


def test_earlier_bundle_is_replaced(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "run.ZIP"
    assert morphnas.bundle(morphnas.load_run(run), out) == out
    assert morphnas.bundle(str(run), str(out)) == out
    assert [file.name for file in out.parent.iterdir()] == ["run.ZIP"]


def test_other_existing_files_are_not_replaced(run: Path, tmp_path: Path) -> None:
    data, text, folder = (tmp_path / f"{name}.zip" for name in ("data", "text", "folder"))
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("x", "y")
    text.write_text("text")
    folder.mkdir()
    before = file_contents(tmp_path)
    for existing in (data, text, folder):
        with pytest.raises(FileExistsError, match="exists already and is not a bundle"):
            morphnas.bundle(run, existing)
    assert file_contents(tmp_path) == before


def test_invalid_output_paths_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.zip"):
        morphnas.bundle(run, tmp_path / "run.tar")
    (tmp_path / "file").write_text("text")
    with pytest.raises(RunError, match=r"file/a\.zip cannot be written"):
        morphnas.bundle(run, tmp_path / "file" / "a.zip")


def test_folder_without_run_and_invalid_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        morphnas.bundle(tmp_path, tmp_path / "a.zip")
    with pytest.raises(ValueError, match="the folder of a run, not"):
        morphnas.bundle(3, tmp_path / "a.zip")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
