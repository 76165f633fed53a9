"""Which images go into the cache of a run, and how they are shared out."""

from pathlib import Path

import pytest

from prompt_tune.config import FitConfig
from prompt_tune.datasets.replay import ReplaySource
from prompt_tune.datasets.sample import write_sample
from prompt_tune.progress import silent
from prompt_tune.tuning.job import FitInputs, Job, prepare
from prompt_tune.tuning.job_cache import Caching


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def caching(job: Job, folder: Path) -> Caching:
    return Caching(job.world, job.original, folder, job.config, silent)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample set of five images, one of them damaged in its middle, and five images for replay."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder / "set", n_images=5)
    damaged = folder / "set/custom/images/train/0002.jpg"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:300] + b"\0" * 400 + content[-2:])  # its beginning and end are whole
    (folder / "replay").mkdir()
    for path in sorted((folder / "set/original/images/val").iterdir()):
        path.rename(folder / "replay" / path.name)
    return folder


@pytest.mark.parametrize(
    ("guide", "tile", "count"),
    [("original", 0, 15), ("own", 0, 20), ("original", 200, 25 + 4 + 4 + 25 + 5)],  # a photo has four slices
)
def test_shares_hold_together_what_the_whole_needs(
    guide: str, tile: int, count: int, place: Path, tmp_path: Path
) -> None:
    inputs = FitInputs("tiny", place / "set/custom/custom.yaml", replay=[ReplaySource(str(place / "replay"), 0.8)])
    job = prepare(inputs, FitConfig(guide=guide, tile=tile, views=2 if guide == "original" else 1), "cpu")  # type: ignore[arg-type]
    assert job.replayed.train.samples and job.replayed.held_out.samples
    whole = caching(job, tmp_path / "whole")
    task = whole.task(job.dataset, job.replayed)
    whole.seen(task, job.dataset.measured)
    shares, counts = caching(job, tmp_path / "shares"), []
    for rank in range(6):  # more than there are images in any part
        counts.append(list(shares.share(job.dataset, job.replayed, rank, 6))[-1])
    assert names(tmp_path / "shares") == names(tmp_path / "whole")
    for name in names(tmp_path / "whole"):
        assert (tmp_path / "shares" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sum(counts) == shares.n_images(job.dataset, job.replayed) == count
    assert min(counts[:4]) > 0 and (counts[5] == 0 or tile)
    assert len(task.train.skipped) == 1 and "0002.jpg" in task.train.skipped[0]
