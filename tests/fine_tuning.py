"""Ultralytics' fine-tuning of all weights of `tiny`, which the benchmarks compare with `fit`."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_tune.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_EPOCHS, BATCH = 100, 16  # ultralytics' defaults; the batch is also that of `fit`
IMAGE_SIZE, SEED = 256, 0


def fine_tune(data: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """Fine-tune with ultralytics' defaults and our text features. A stopped run continues after its last full epoch.

    Args:
        data: An ultralytics YAML.
        folder: For checkpoints, log and settings.
        epochs: The number of epochs.

    Returns:
        `epochs`: one dict per epoch with `seconds`, from its start to the end of its validation, without loading and
        saving, and `ap` and `ap50` on the validation images, in 0..1.
    """
    import torch

    os.environ["YOLO_CONFIG_DIR"] = str(folder / "settings")
    (folder / "settings").mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    trainer, log = _trainer(data, folder, epochs)
    torch.set_num_threads(threads)  # ultralytics has set fewer when it chose a device
    trainer.train()
    # an epoch may have several lines if the run was stopped; the last one counts
    lines = {line["epoch"]: line for line in map(json.loads, log.read_text().splitlines())}
    return {"epochs": [lines[epoch] for epoch in sorted(lines)]}


def _trainer(data: Path, folder: Path, epochs: int) -> tuple[Any, Path]:
    """A `WorldTrainer` that starts from `tiny` or continues a stopped run, and its log file."""
    import torch
    from matplotlib import font_manager

    from prompt_tune.models import ultralytics
    from prompt_tune.models.text_tower import TextTower
    from prompt_tune.models.world import World

    tasks = ultralytics.quiet_import("ultralytics.nn.tasks")
    utils = ultralytics.quiet_import("ultralytics.utils")
    base: Any = ultralytics.quiet_import("ultralytics.models.yolo.world.train").WorldTrainer
    # ultralytics would download this font when it checks the data set's names
    shutil.copyfile(font_manager.findfont("DejaVu Sans"), Path(utils.USER_CONFIG_DIR) / "Arial.ttf")
    tower = TextTower.load("tiny")
    log = folder / "epochs.jsonl"

    class Trainer(base):
        """Takes text features from our tower, not from a download, and times every epoch."""

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            model = tasks.WorldModel(dict(weights.yaml), ch=3, verbose=False)  # the base class wants a YAML file
            model.load(weights, verbose=False)
            state = weights.state_dict()
            if any(not torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items()):
                raise RuntimeError("The fine-tuning does not start from the checkpoint's weights.")
            names = list(self.data["names"].values())
            model.txt_feats = torch.from_numpy(tower.embed(names))[None]  # (1, n_cls, 512), for the validation
            model.model[-1].nc = len(names)
            return model

        def generate_text_embeddings(self, texts: list[str], batch: int, cache_dir: Path) -> "dict[str, Tensor]":
            return dict(zip(texts, torch.from_numpy(tower.embed(texts)), strict=True))

        def validate(self) -> Any:
            metrics, fitness = super().validate()
            line = {
                "epoch": self.epoch + 1,
                "seconds": time.perf_counter() - self.epoch_started,
                "ap": float(metrics["metrics/mAP50-95(B)"]),
                "ap50": float(metrics["metrics/mAP50(B)"]),
            }
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            return metrics, fitness

        def final_eval(self) -> None:
            """Do nothing: the epochs have been measured."""

    last = folder / "run" / "weights" / "last.pt"
    start = folder / "tiny.pt"
    if not last.is_file():
        log.unlink(missing_ok=True)
        model = World.load("tiny").model
        with replacing(start) as path:
            torch.save({"epoch": -1, "model": model, "ema": None, "train_args": {}}, path)
    overrides = {
        "model": str(start),
        "data": str(data),
        "imgsz": IMAGE_SIZE,
        "epochs": epochs,
        "batch": BATCH,
        "seed": SEED,
        "device": "cpu",
        "workers": 0,
        "amp": False,
        "plots": False,
        "verbose": False,
        "project": str(folder),
        "name": "run",
        "exist_ok": True,
        "resume": str(last) if last.is_file() else False,
    }
    trainer = Trainer(overrides=overrides)
    trainer.add_callback("on_train_epoch_start", lambda t: setattr(t, "epoch_started", time.perf_counter()))
    return trainer, log
