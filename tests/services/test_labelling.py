"""A worker: rows for all images of a part."""

from pathlib import Path

import extras

# ruff: noqa: E402
extras.needs("pyarrow")

from labelling import SHOW, expected, rows_of, write_photos
from small_bundle import content

from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.slices import Slices, detect_sliced
from prompt_tune.services.items import find_items
from prompt_tune.services.labelling import Job, Part, Worker
from prompt_tune.services.results import Results


def test_worker_in_slices_gives_the_bits_of_detect_in_slices(bundle: Path, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 4)
    (tmp_path / "photos" / "0001.png").write_bytes(b"no image")
    run = Results(tmp_path / "out").begin({"batch": 2, "info": {}, "classes": [["learned", name] for name in SHOW]})
    detector = Detector(bundle, threads=1)
    learned = {"learned": detector.vocabularies["learned"]}
    worker = Worker(Job(bundle, learned, "cpu", None, 1, 2, Slices(48, 0.3), {"show": SHOW}, run))
    done = worker.label(Part("x.parquet", list(find_items(tmp_path / "photos"))))
    rows = rows_of(tmp_path / "out")
    assert (done.images, done.failed) == (4, 1) and "cannot be read" in str(rows.pop(str(paths[1])))
    wanted = {
        str(path): content(detect_sliced(detector, path, Slices(48, 0.3), batch=2, show=SHOW))
        for path in paths
        if path != paths[1]
    }
    assert rows == wanted and wanted != expected(bundle, [paths[0], *paths[2:]], batch=2)


def test_worker_gives_the_bits_of_detect_and_a_row_for_each_damaged_image(bundle: Path, tmp_path: Path) -> None:
    paths = write_photos(tmp_path / "photos", 5)
    (tmp_path / "photos" / "0001.png").write_bytes(b"no image")
    (tmp_path / "photos" / "gone.png").write_bytes(b"")
    items = list(find_items(tmp_path / "photos"))
    (tmp_path / "photos" / "gone.png").unlink()
    run = Results(tmp_path / "out").begin({"batch": 4, "info": {}, "classes": [["learned", name] for name in SHOW]})
    learned = {"learned": Detector(bundle, threads=1).vocabularies["learned"]}
    worker = Worker(Job(bundle, learned, "cpu", None, 1, 4, None, {"show": SHOW}, run))
    done = worker.label(Part("x.parquet", items))
    rows = rows_of(tmp_path / "out")
    assert list(rows) == [item.path for item in items]
    wanted = expected(bundle, [path for path in paths if path.name != "0001.png"], batch=4)
    assert {path: rows[path] for path in wanted} == wanted and len(set(wanted.values())) == 4
    (damaged,), (gone,) = rows[str(paths[1])], rows[str(tmp_path / "photos" / "gone.png")]
    assert "0001.png` cannot be read as an image" in str(damaged) and "no such image" in str(gone)
    assert (done.images, done.failed, done.errors) == (6, 2, (damaged, gone))
    assert done.detections == sum(len(row.found) for row in Results(tmp_path / "out").rows()) > 0
