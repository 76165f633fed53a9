"""A cache that several processes fill: the same bytes as one process gives, and one line when one of them ends."""

import json
import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from prompt_tune.config import FitConfig
from prompt_tune.datasets.sample import write_sample
from prompt_tune.errors import ProviderError, RunError
from prompt_tune.models.world import World
from prompt_tune.tuning import sharing
from prompt_tune.tuning.fit import fit
from prompt_tune.tuning.job import FitInputs
from prompt_tune.tuning.ranks import Ranks
from prompt_tune.tuning.sharing import check_all, help_out

CONFIG = FitConfig(epochs=2, updates=2, views=2)
SETTINGS = ["--epochs", "2", "--updates", "2", "--views", "2"]
RESULTS = ("learned.vocab.safetensors", "prompts.safetensors", "original.vocab.safetensors")


@pytest.fixture(scope="module")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small custom job: its YAML. 13 + 13 images, so that shares differ in size."""
    return write_sample(tmp_path_factory.mktemp("sample") / "set", n_images=13)[0]


@pytest.fixture(scope="module")
def alone(custom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    return fit(FitInputs("tiny", custom), tmp_path_factory.mktemp("alone") / "run", config=CONFIG).run


def cached(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "regions").iterdir()}


def test_three_processes_and_then_torchrun_with_two_end_with_the_bytes_of_one(
    custom: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, batches, seen = World.features, [], []

    def counted(world: World, images: torch.Tensor, guide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batches.append(len(images))
        return features(world, images, guide)

    def interrupt(stage: str, done: int, total: int | None, note: str) -> None:
        seen.append((stage, done, total, note))
        if stage == "train" and done == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(World, "features", counted)
    run = tmp_path / "run"
    stopped = fit(FitInputs("tiny", custom), run, config=CONFIG, device="cpu,cpu,cpu", progress=interrupt)
    assert not stopped.finished
    assert ("cache shared", 26, 26, "3 processes") in seen
    assert len(batches) == 3 + 2  # of 5 images in two views, and of 5 in one; the other processes did the rest
    assert cached(run) == cached(alone)
    assert not multiprocessing.active_children()

    lost = sorted((run / "regions").iterdir())[::3]
    for path in lost:  # as if a rank had been killed
        path.unlink()
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "prompt_tune"]
    done = subprocess.run(
        [*command, "fit", "--model", "tiny", "--data", custom, "--out", run, *SETTINGS, "--resume"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Done: epoch") == 1 and len(done.stdout.splitlines()) == 3
    assert done.stderr.count("train 13 images") == 1  # rank 1 is quiet
    assert cached(run) == cached(alone)
    for name in RESULTS:
        assert (run / name).read_bytes() == (alone / name).read_bytes(), name


def test_killed_helper_ends_the_fit_with_its_name(custom: Path, tmp_path: Path) -> None:
    def kill(stage: str, done: int, total: int | None, note: str) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with pytest.raises(RunError, match=r"^Rank 1 of 2 .*killed or crashed.* continue with --resume\.$"):
        fit(FitInputs("tiny", custom), tmp_path / "run", config=CONFIG, device="cpu,cpu", progress=kill)
    assert not multiprocessing.active_children()
    assert not [path for path in (tmp_path / "run/regions").iterdir() if path.suffix != ".safetensors"]


def helped(out: Path, custom: Path, begin: dict[str, object]) -> dict[str, object]:
    """What rank 1 says of itself in the end, if rank 0 lets it begin with some words."""
    store = HashStore()
    with Ranks(store, 0, 2, group=None) as first:
        first.begin(begin)
        levels = {name: logging.getLogger(name).level for name in ("prompt_tune", "prompt_tune.tuning.caching")}
        try:
            help_out(FitInputs("tiny", custom), out, Ranks(store, 1, 2, group=None), config=CONFIG)
        except SystemExit as stop:
            assert stop.code == 1
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
    note: dict[str, object] = json.loads(store.get("rank/1"))
    return note


def test_rank_without_the_folder_of_rank_0_says_that_it_must_be_shared(
    custom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "LAG", 0.1)
    threads = torch.get_num_threads()
    note = helped(tmp_path / "run", custom, {"mark": ".ranks-0", "threads": threads, "resumed": False})
    assert note["end"] == "failed"
    assert str(note["why"]).startswith(f"This rank does not see the folder `{tmp_path / 'run/regions'}` of rank 0.")
    (tmp_path / "run/regions").mkdir(parents=True)
    (tmp_path / "run/regions/.ranks-0").touch()
    note = helped(tmp_path / "run", custom, {"mark": ".ranks-0", "threads": threads, "resumed": True})
    assert f"the folder `{tmp_path / 'run'}`" in str(note["why"])


def test_rank_takes_every_second_image_with_the_threads_of_rank_0(custom: Path, alone: Path, tmp_path: Path) -> None:
    (tmp_path / "run/regions").mkdir(parents=True)
    (tmp_path / "run/regions/.ranks-0").touch()
    threads = torch.get_num_threads()
    try:
        note = helped(tmp_path / "run", custom, {"mark": ".ranks-0", "threads": threads + 1, "resumed": False})
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert (note["end"], note["done"]) == ("done", 12)
    made = {path.name for path in (tmp_path / "run/regions").glob("*.safetensors")}
    assert len(made) == 6 * 2 + 6 and made < set(cached(alone))


def test_gpus_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    check_all(["cpu", "cpu"])
    with pytest.raises(ProviderError, match=r"^`device='cuda:62,cuda:63'` names GPU 62, and torch sees "):
        check_all(["cuda:62", "cuda:63"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ProviderError, match="which shows 1 GPU"):
        check_all(["cuda:1"])


def test_more_threads_than_cores_are_said(
    custom: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with (
            pytest.raises(KeyboardInterrupt),
            sharing.helpers(
                ["cpu", "cpu"], FitInputs("tiny", custom), custom.parent / "run", config=CONFIG, strict=False
            ),
        ):
            raise KeyboardInterrupt
    finally:
        torch.set_num_threads(threads)
    assert "2 processes with 2 threads each are more than 2 cores" in caplog.text
    assert "Set OMP_NUM_THREADS to 1;" in caplog.text
    assert not multiprocessing.active_children()
