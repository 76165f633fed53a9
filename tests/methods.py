"""The methods that are compared, ours and the baselines, and the measurement of one of them on one draw of images."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from few_shot import IMAGE_SIZE, Job
from fine_tuning import fine_tune
from torch import Tensor, nn

from prompt_tune.config import FitConfig
from prompt_tune.contract import DEFAULT_THRESHOLD
from prompt_tune.datasets.samples import Labels
from prompt_tune.deployment.graph import export_graph
from prompt_tune.evaluation.matching import match_classes
from prompt_tune.evaluation.metrics import Metrics, average_precision, coco_evaluation
from prompt_tune.evaluation.thresholds import choose_nms_iou, choose_thresholds
from prompt_tune.evaluation.verify import changed_bits
from prompt_tune.files import replacing
from prompt_tune.models.context import PromptContext
from prompt_tune.models.text_tower import template_embeddings
from prompt_tune.models.world import World
from prompt_tune.runtime.detections import Detections
from prompt_tune.runtime.detector import Detector
from prompt_tune.runtime.images import letterbox, read_rgb
from prompt_tune.runtime.packing import from_rows
from prompt_tune.tuning.regions import RegionCache, Regions
from prompt_tune.tuning.stand_ins import StandIns
from prompt_tune.tuning.tasks import GuidedTask, RegionTask, Task, detect_regions
from prompt_tune.tuning.trainer import Trainer
from prompt_tune.vocabulary.format import GRAPH_FILE, ORIGINAL_FILE
from prompt_tune.vocabulary.names import read_templates
from prompt_tune.vocabulary.vocabulary import Vocabulary, guide_digest

Json = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        name: How the table calls it.
        kind: What is trained: "context", "free" (the embeddings themselves) or "weights" (ultralytics' fine-tuning).
            "plain", "template" and "templates" train nothing.
        settings: Settings of `FitConfig` that differ from its defaults.
        guide: What steers the neck: "original", "own" or "joint" (original and learned classes together).
        replay: The part of the job that is mixed in; empty if there is no replay.
        ratio: Number of replayed images per drawn image.
    """

    name: str
    kind: str = "context"
    settings: Json = field(default_factory=dict)
    guide: str = "original"
    replay: str = ""
    ratio: int = 1


class JointTask(GuidedTask):
    """A baseline in which original and learned classes guide the neck together."""

    def __init__(self, original: Tensor, *args: Any) -> None:
        """Take the caches of `GuidedTask`.

        Args:
            original: (n, 512) float32, unit rows.
            args: What `GuidedTask` takes.
        """
        super().__init__(*args)
        self._original = original

    def guide(self, embeddings: Tensor) -> Tensor:
        """The original classes, followed by the learned ones."""
        return torch.cat([self._original, super().guide(embeddings)])  # (n + n_cls * n_prompts, 512)


class FreeEmbeddings(nn.Module):
    """Embeddings that are learned directly, without a text tower. They start from those of the plain names."""

    def __init__(self, start: np.ndarray) -> None:
        super().__init__()
        self.ctx = nn.Parameter(torch.tensor(start))  # (n_cls, n_prompts, 512)

    def forward(self) -> Tensor:
        return nn.functional.normalize(self.ctx, dim=-1)

    @torch.no_grad()
    def embeddings(self) -> np.ndarray:
        return self().numpy()


def measure(job: Job, method: Method, shots: int, seed: int, keep: Path) -> Json:
    """Train a method on a draw of the pool, choose its epoch on the validation images, and report the test images.

    Args:
        job: The job.
        method: The method.
        shots: Images per class.
        seed: Of the draw and of the initial values.
        keep: A file (.npz) for what was learned. If it exists, only the measuring is done again.

    Returns:
        `ap` and `ap50` of the learned classes on the test images, with the `nms_iou` that is best on the validation
        images, chosen for every method as `fit` chooses it; `ap50_loose` at NMS IoU 0.7. On the original scenes, AP
        `original_before` and `original_after`, and `bits`, how many bits of original detections changed. On 1,000
        backgrounds, `false_alarms` above the chosen thresholds and `alarms_at_default` above 0.25. `seconds` of CPU
        time for training and its validations, and the numbers of `parameters` and `images`.
    """
    chosen = job.draw(shots, seed)
    if method.kind == "weights":
        return _fine_tuning(job, chosen, shots, method.settings["epochs"])
    if not keep.is_file():
        started = time.process_time()  # of one thread: what runs beside it does not count
        task = _task(job, method, chosen, seed)
        if method.kind in ("context", "free"):
            trained = _learn(job, method, task, seed)
            embeddings, parameters = trained.embeddings(), trained.ctx.numel()
        else:
            embeddings, parameters = _written(job, method, job.classes, task), 0
        with replacing(keep) as path, path.open("wb") as file:
            np.savez(file, embeddings=embeddings, parameters=parameters, seconds=time.process_time() - started)
    with np.load(keep) as learned:
        embeddings, parameters, seconds = learned["embeddings"], int(learned["parameters"]), float(learned["seconds"])
    parts = ["val", f"{method.replay} held out"] if method.replay else ["val"]
    measured = _measured(lambda part: _on(job, method, part).detect(embeddings), len(embeddings), parts)
    after = _original_after(job, method, embeddings)
    return {**measured, **after, "seconds": seconds, "parameters": parameters, "images": len(chosen)}


def measure_new_names(job: Job, method: Method, shots: int, seed: int) -> Json:
    """Train shared context on the names that the training scenes show, and put it in front of the other names too.

    Returns:
        Mean AP50 on the test images: `base` over the names that were trained, `new` over the others, and their
        `harmonic` mean, as CoCoOp (arXiv 2203.05557) reports it.
    """
    n_base = len(job.taught)
    if method.kind == "context":
        context = _learn(job, method, _task(job, method, job.draw(shots, seed), seed), seed)
        settings = {"n_ctx": context.n_ctx, "class_specific": False, "initial_words": context.initial_words}
        whole = PromptContext(job.tower, job.classes, **settings)
        whole.adopt(context)
        embeddings = whole.embeddings()
    else:
        embeddings = _written(job, method, job.classes, _on(job, method, "val"))
    limit = np.full(len(job.classes), choose_nms_iou(*_on(job, method, "val").detect(embeddings), len(job.classes)))
    truths, founds = _on(job, method, "test").detect(embeddings)
    founds = [found.distinct(limit) for found in founds]
    ap50 = coco_evaluation(truths, founds, len(job.classes)).curves.mean(1)
    base, new = float(np.nanmean(ap50[:n_base])), float(np.nanmean(ap50[n_base:]))
    return {"base": base, "new": new, "harmonic": 2 * base * new / max(base + new, 1e-9)}


def _task(job: Job, method: Method, chosen: Sequence[int], seed: int) -> Task:
    """A task with the drawn images, the replayed ones of the method, and the validation images."""
    pool = job.backbone("pool") if method.guide != "original" else job.regions("pool", method.settings.get("views", 1))
    files = [pool.files[i] for i in chosen]
    if method.replay:
        more = job.regions(method.replay).files
        files += [more[i] for i in np.random.default_rng(seed).permutation(len(more))[: method.ratio * len(chosen)]]
    task = _on(job, method, "val")
    task.train = RegionCache(files, n_replay=len(files) - len(chosen))
    return task


def _on(job: Job, method: Method, part: str) -> Task:
    """A task that measures on one part of the job."""
    if method.guide == "original":
        return RegionTask(job.world, RegionCache(), job.regions(part), IMAGE_SIZE)
    if method.guide == "joint":
        return JointTask(job.guide, job.world, RegionCache(), job.backbone(part), IMAGE_SIZE)
    return GuidedTask(job.world, RegionCache(), job.backbone(part), IMAGE_SIZE)


def _written(job: Job, method: Method, classes: Sequence[tuple[str, ...]], task: Task) -> np.ndarray:
    """Embeddings (n_cls, 1, 512) of hand-written prompts. The best template is chosen on the validation images."""
    if method.kind == "plain":
        return job.tower.embed_classes(classes)
    if method.kind == "templates":
        return template_embeddings(job.tower, classes)
    rows = [template_embeddings(job.tower, classes, [template]) for template in read_templates()]
    return max(rows, key=lambda row: average_precision(*task.detect(row), len(row)).ap)


def _learn(job: Job, method: Method, task: Task, seed: int) -> Any:
    """The context or the free embeddings of the epoch that was best on the validation images."""
    config = FitConfig(seed=seed, image_size=IMAGE_SIZE, **method.settings)
    context: Any = PromptContext(
        job.tower,
        job.taught,
        n_ctx=config.context_length,
        class_specific=config.class_specific,
        token_position=config.token_position,
        prompts_per_class=config.prompts_per_class,
        initial_words=config.initial_words,
        seed=seed,
    )
    teacher = torch.from_numpy(template_embeddings(job.tower, context.texts)) if config.teacher_weight else None
    if method.kind == "free":
        context = FreeEmbeddings(job.tower.embed_classes(job.taught))
    stand_ins = StandIns(job.world, [job.original], job.taught) if config.stand_ins else None
    trainer = Trainer(task, context, config, teacher=teacher, stand_ins=stand_ins)
    while trainer.epoch < config.epochs:
        trainer.run_epoch()
    with torch.no_grad():
        context.ctx.copy_(trainer.best_ctx)
    return context


def _measured(
    detect: Callable[[str], tuple[list[Labels], list[Detections]]], n_cls: int, parts: Sequence[str] = ("val",)
) -> Json:
    """AP on the test images and false alarms on the backgrounds; NMS IoU and thresholds are chosen on `parts`."""
    truths, founds = (list(chain(*lists)) for lists in zip(*(detect(part) for part in parts), strict=True))
    iou = choose_nms_iou(truths, founds, n_cls)

    def suppressed(founds: Sequence[Detections]) -> list[Detections]:
        return [found.distinct(np.full(n_cls, iou, np.float32)) for found in founds]

    names = [str(k) for k in range(n_cls)]
    thresholds = choose_thresholds(names, match_classes(truths, suppressed(founds), n_cls)).values
    truths, founds = detect("test")
    loose: Metrics = average_precision(truths, founds, n_cls)
    precision = average_precision(truths, suppressed(founds), n_cls)
    founds = suppressed(detect("background")[1])
    alarms = [
        1000 / len(founds) * sum(int((found.scores > limit[found.class_ids]).sum()) for found in founds)
        for limit in (thresholds, np.full(n_cls, DEFAULT_THRESHOLD))
    ]
    return {
        "ap": precision.ap,
        "ap50": precision.ap50,
        "ap50_loose": loose.ap50,
        "nms_iou": iou,
        "false_alarms": alarms[0],
        "alarms_at_default": alarms[1],
    }


def _original_after(job: Job, method: Method, embeddings: np.ndarray) -> Json:
    """AP of the original classes before and after, and how many bits of their detections changed.

    This is measured in ONNX Runtime with the learned vocabulary loaded. A joint guide, which the product refuses, is
    measured in torch.
    """
    n_cls = len(job.original.names)
    if method.guide == "joint":
        joint = torch.cat([job.guide, torch.from_numpy(embeddings).flatten(0, 1)])  # (80 + n_cls * n_prompts, 512)
        (truths, before), (_, after) = (
            forward(job, job.world, "original", rows, job.original.embeddings) for rows in (job.guide, joint)
        )
        tables = [
            [np.column_stack([f.boxes_xyxy, f.scores, f.class_ids]) for f in founds] for founds in (before, after)
        ]
        bits = sum(changed_bits(*pair) for pair in zip(*tables, strict=True))
    else:
        detector = Detector(_bundle(job), use_bundled=False, threads=1)
        pixels = [letterbox(read_rgb(sample.path), IMAGE_SIZE)[0] for sample in job.samples("original")]
        inputs = [image.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255) for image in pixels]
        tables = [[detector.raw(image, original_conf=0.001)[0] for image in inputs]]
        own = method.guide == "own"
        detector.load(
            Vocabulary(
                tuple(names[0] for names in job.classes),
                embeddings,
                kind="learned",
                guide_mode="own" if own else "original",
                detector=job.world.digest,
                text_tower=job.tower.digest,
                guide=guide_digest(embeddings) if own else job.original.digest,
            )
        )
        tables.append([detector.raw(image, original_conf=0.001)[0] for image in inputs])
        bits = sum(changed_bits(*pair) for pair in zip(*tables, strict=True))
        truths = [s.labels for s in job.samples("original")]
        before, after = ([from_rows(t) for t in part] for part in tables)
    aps = [average_precision(truths, founds, n_cls).ap for founds in (before, after)]
    return {"original_before": aps[0], "original_after": aps[1], "bits": bits}


def forward(
    job: Job, world: World, part: str, guide: Tensor, embeddings: np.ndarray
) -> tuple[list[Labels], list[Detections]]:
    """Labels and detections of one part of the job, from complete passes of a detector.

    Args:
        job: The job.
        world: The detector.
        part: The part.
        guide: (n, 512) float32.
        embeddings: (n_cls, n_prompts, 512) float32, of the classes of the part.
    """
    labels = job.regions(part)

    def images() -> Iterator[Regions]:
        for i, sample in enumerate(job.samples(part)):
            pixels = torch.from_numpy(letterbox(read_rgb(sample.path), IMAGE_SIZE)[0].copy())
            head, boxes = world.features(pixels.permute(2, 0, 1)[None].float() / 255, guide)
            yield replace(labels.load(i), head=head[0], boxes_xyxy=boxes[0], anchor=torch.arange(head.shape[1]))

    return detect_regions(world, embeddings, images(), world.anchors(IMAGE_SIZE, IMAGE_SIZE))


def _bundle(job: Job) -> Path:
    """A folder with the graph of the detector and the original vocabulary."""
    folder = job.folder / "bundle"
    if not (folder / GRAPH_FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        job.original.save(folder / ORIGINAL_FILE)
        export_graph(job.world, folder / GRAPH_FILE, image_size=IMAGE_SIZE)
    return folder


def _fine_tuning(job: Job, chosen: Sequence[int], shots: int, epochs: int) -> Json:
    """Ultralytics' fine-tuning of all weights on the drawn images.

    Ultralytics chooses the best epoch on the validation images, and uses the learned names as guide and as classes.
    """
    folder = job.folder / f"fine-tuning-{shots}"
    folder.mkdir(parents=True, exist_ok=True)
    names = [prompts[0] for prompts in job.classes]
    pool, data = job.samples("pool"), folder / "data.yaml"
    (folder / "train.txt").write_text("".join(f"{pool[i].path.resolve()}\n" for i in chosen))
    places = {"train": str((folder / "train.txt").resolve()), "val": str(job.samples("val")[0].path.parent.resolve())}
    data.write_text(yaml.safe_dump({**places, "names": dict(enumerate(names))}, sort_keys=False))
    log = folder / "epochs.jsonl"
    lines = {line["epoch"]: line for line in map(json.loads, log.read_text().splitlines())} if log.is_file() else {}
    epoch_lines = list(lines.values()) if len(lines) == epochs else fine_tune(data, folder, epochs)["epochs"]
    tuned = World.load(folder / "run" / "weights" / "best.pt")
    rows = job.tower.embed_classes(job.classes)  # (n_cls, 1, 512)
    measured = _measured(lambda part: forward(job, tuned, part, torch.from_numpy(rows[:, 0]), rows), len(names))
    (truths, before), (_, after) = (
        forward(job, world, "original", job.guide, job.original.embeddings) for world in (job.world, tuned)
    )
    aps = [average_precision(truths, founds, len(job.original.names)).ap for founds in (before, after)]
    return {
        **measured,
        "original_before": aps[0],
        "original_after": aps[1],
        "bits": None,
        "seconds": sum(line["seconds"] for line in epoch_lines),
        "parameters": sum(parameter.numel() for parameter in tuned.model.parameters()),
        "images": len(chosen),
    }
