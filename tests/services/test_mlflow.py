"""`fit --log mlflow`, read back from its store."""

import json
from pathlib import Path
from typing import Any

import extras
import pytest
from tracked import LINES, fit_logged, stopped_and_continued

from prompt_tune.run import RunFolder

extras.needs("mlflow", "sqlalchemy", "alembic")


def read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The client of a run's store, and the only run that is in it."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("prompt-tune")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was logged. Nothing was sent, and nothing written outside its folder."""
    run, outcome = fit_logged(tmp_path_factory.mktemp("mlflow"), "mlflow")
    assert outcome.status == 0, outcome.out
    assert (outcome.left, outcome.sockets) == ([], [])
    assert f"Logged: mlflow ui --backend-store-uri 'sqlite:///{run}/mlflow/mlflow.db'" in outcome.out
    return run


def test_numbers_settings_and_files_are_those_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, found = read(run, monkeypatch)
    assert found.info.run_name == "my run" and found.info.status == "FINISHED"
    lines = RunFolder(run).read_metrics()
    for name, key in (("train/loss", "loss"), ("val/ap", "ap")):
        history = client.get_metric_history(found.info.run_id, name)
        assert [(part.step, part.value) for part in history] == [(line["epoch"], line[key]) for line in lines]
    assert found.data.params["epochs"] == "2" and found.data.params["model"] == "tiny"
    assert found.data.metrics["kept/epoch"] in (1, 2) and "kept/ap50 of plain name" in found.data.metrics
    files = {part.path for part in client.list_artifacts(found.info.run_id)}
    assert files == {"config.json", "learned.vocab.safetensors", "pictures", "report.html"}
    local = Path(client.download_artifacts(found.info.run_id, "learned.vocab.safetensors"))
    assert local.read_bytes() == (run / "learned.vocab.safetensors").read_bytes()
    pictures = {part.path for part in client.list_artifacts(found.info.run_id, "pictures")}
    assert {"pictures/curves.png", "pictures/photo01.jpg"} <= pictures


def test_run_that_is_continued_is_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_and_continued(tmp_path / "run", "mlflow")
    client, found = read(tmp_path / "run", monkeypatch)
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(part.step, part.value) for part in history] == [(line["epoch"], line["loss"]) for line in LINES]
    assert json.loads((tmp_path / "run" / "tracking.json").read_text()) == {"mlflow": found.info.run_id}


def test_store_of_the_user_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'all.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "nights")
    monkeypatch.chdir(tmp_path)  # where MLflow puts artefacts of a store without a server
    for name in ("one", "two"):
        stopped_and_continued(tmp_path / name, "mlflow")
        assert not (tmp_path / name / "mlflow").exists()
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'all.db'}")
    runs = client.search_runs([client.get_experiment_by_name("nights").experiment_id])
    assert {part.info.run_name for part in runs} == {"one", "two"}
