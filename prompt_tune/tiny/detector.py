"""The detector of `tiny`: a small YOLO-World v2, trained from scratch on scenes that are drawn on the fly.

As in YOLO-World (arXiv 2401.17270), each image comes with a list of names, positive and negative ones. Different here:
every object has names at several levels at once ("circle", "red circle", "red striped circle"), and the negatives are
hard (the same shape in another colour, the same colour in another shape, another pattern).
"""

import logging
import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from prompt_tune.datasets.scenes import COLOURS, PATTERNS, SHAPES, TRAINED, Look, draw_scene, names_of, random_look
from prompt_tune.files import replacing
from prompt_tune.models import ultralytics
from prompt_tune.models.ultralytics import layer_inputs

logger = logging.getLogger(__name__)
STATE_FILE = "detector-state.pt"  # what an interrupted training resumes from
N_NAMES = 80  # names in the list of an image: as many as in the original vocabulary
FULL_LIST = 0.5  # share of images whose list is the original vocabulary
BATCH = 16  # images per update
PEAK_LR, WEIGHT_DECAY, WARM_UP = 2e-3, 0.02, 150  # warm-up in updates
EMA_DECAY, EMA_RAMP = 0.9995, 400  # moving average of the weights, ramped up as in ultralytics
BOX_GAIN, CLASS_GAIN, DFL_GAIN = 7.5, 1.0, 1.5  # ultralytics has 7.5, 0.5, 1.5; here an object has several names
CLIP_NORM = 10.0  # of the gradient
SAVE_EVERY = 250  # updates between saved states
_C2F, _CONV = "C2f", "Conv"
YAML: dict[str, Any] = {  # ultralytics' yolov8-worldv2.yaml with an added scale "t"
    "nc": N_NAMES,
    "scales": {"t": [0.33, 0.25, 512]},
    "scale": "t",
    "backbone": [
        [-1, 1, _CONV, [64, 3, 2]],
        [-1, 1, _CONV, [128, 3, 2]],
        [-1, 3, _C2F, [128, True]],
        [-1, 1, _CONV, [256, 3, 2]],
        [-1, 6, _C2F, [256, True]],
        [-1, 1, _CONV, [512, 3, 2]],
        [-1, 6, _C2F, [512, True]],
        [-1, 1, _CONV, [1024, 3, 2]],
        [-1, 3, _C2F, [1024, True]],
        [-1, 1, "SPPF", [1024, 5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 6], 1, "Concat", [1]],
        [-1, 3, "C2fAttn", [512, 256, 8]],
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 4], 1, "Concat", [1]],
        [-1, 3, "C2fAttn", [256, 128, 4]],
        [15, 1, _CONV, [256, 3, 2]],
        [[-1, 12], 1, "Concat", [1]],
        [-1, 3, "C2fAttn", [512, 256, 8]],
        [-1, 1, _CONV, [512, 3, 2]],
        [[-1, 9], 1, "Concat", [1]],
        [-1, 3, "C2fAttn", [1024, 512, 16]],
        [[15, 18, 21], 1, "WorldDetect", ["nc", 512, True]],
    ],
}


class Scenes(Dataset):  # type: ignore[type-arg]
    """The scenes of the pretraining, each with a list of names.

    Item `index` has the image, (3, 256, 256) uint8; its list of names, (80,) int64 indices into `names`; the boxes of
    its objects, (n, 4) float32 x1 y1 x2 y2 in pixels; and (n, 80) float32, 1 where a name describes an object.
    """

    def __init__(self, names: list[str], seed: int, count: int) -> None:
        """Prepare the scenes; each is drawn when it is asked for.

        Args:
            names: The names that lists are drawn from.
            seed: The seed of all scenes.
            count: The number of scenes.
        """
        self.names, self.seed, self.count = names, seed, count
        self.place = {name: i for i, name in enumerate(names)}
        self.original = np.array([self.place[f"{c} {s}"] for c, s in TRAINED])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, 0, index])
        scene = draw_scene([random_look(rng) for _ in range(rng.integers(3, 9))], rng)
        listed = self.original if rng.random() < FULL_LIST else self._mixed(scene.looks, rng)
        said = [{self.place[name] for name in names_of(look)} for look in scene.looks]
        positive = np.array([[name in described for name in listed] for described in said], np.float32)
        return (
            torch.from_numpy(scene.image).permute(2, 0, 1),
            torch.from_numpy(listed),
            torch.from_numpy(scene.boxes_xyxy),
            torch.from_numpy(positive.reshape(len(said), N_NAMES)),
        )

    def _mixed(self, looks: list[Look], rng: np.random.Generator) -> np.ndarray:
        """(80,) indices into `names`: names of the objects at random levels, hard negatives, and random names."""
        chosen: set[int] = set()
        for look in looks:
            layer, said = look.layers[0], names_of(look)
            chosen |= {self.place[said[i]] for i in rng.choice(len(said), min(2, len(said)), replace=False)}
            pattern = PATTERNS[rng.integers(1, len(PATTERNS))]
            hard = [f"{c} {layer.shape}" for c in rng.choice(list(COLOURS), 3)]
            hard += [f"{layer.colour} {s}" for s in rng.choice(SHAPES, 2)]
            hard += [f"{pattern} {layer.shape}", f"{layer.colour} {pattern} {layer.shape}"]
            chosen |= {self.place[name] for name in hard if name in self.place}  # others are held out
        if rng.random() < 0.5:
            chosen |= {self.place[shape] for shape in SHAPES}
        order = rng.permutation(sorted(chosen))[:N_NAMES]
        missing = [i for i in range(len(looks)) if not any(self.place[n] in order for n in names_of(looks[i]))]
        order[: len(missing)] = [self.place[names_of(looks[i])[1]] for i in missing]
        rest = rng.permutation(np.setdiff1d(np.arange(len(self.names)), order))
        return rng.permutation(np.concatenate([np.unique(order), rest])[:N_NAMES]).astype(np.int64)


def collate(items: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Join the items of a batch.

    Returns:
        Images (b, 3, 256, 256); names (b, 80); and, padded to the largest number of objects m: boxes (b, m, 4),
        positives (b, m, 80) and a mask (b, m, 1) that is 1 for real objects.
    """
    images, names, boxes, positives = zip(*items, strict=True)
    most = max(1, max(map(len, boxes)))
    padded = torch.zeros(len(items), most, 4)
    positive = torch.zeros(len(items), most, N_NAMES)
    mask = torch.zeros(len(items), most, 1)
    for i, (box, pos) in enumerate(zip(boxes, positives, strict=True)):
        padded[i, : len(box)], positive[i, : len(box)], mask[i, : len(box)] = box, pos, 1
    return torch.stack(images), torch.stack(names), padded, positive, mask


def train_detector(
    out: Path, names: list[str], embeddings: np.ndarray, *, seed: int, steps: int, device: str = "cpu"
) -> nn.Module:
    """Train the detector, or resume from the state that an interrupted training left.

    Args:
        out: The folder of the state.
        names: The n names that lists are drawn from.
        embeddings: (n, 512) float32, unit rows, of the names.
        seed: The seed of scenes and initial weights.
        steps: The number of updates, of 16 images each.
        device: A torch device.

    Returns:
        A `WorldModel` with the averaged weights, in eval mode, on the CPU.
    """
    torch.manual_seed(seed)
    model: Any = build_model().to(device).to(memory_format=torch.channels_last)
    ema = ultralytics.quiet_import("ultralytics.utils.torch_utils").ModelEMA(model, decay=EMA_DECAY, tau=EMA_RAMP)
    optimizer = torch.optim.AdamW(_groups(model), lr=PEAK_LR)
    first, state_file = 0, out / STATE_FILE
    if state_file.is_file():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        ema.ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        first = ema.updates = state["step"]
        logger.info("Resuming after update %d.", first)
    scenes = Scenes(names, seed, steps * BATCH)
    loader = DataLoader(
        torch.utils.data.Subset(scenes, range(first * BATCH, steps * BATCH)),
        BATCH,
        collate_fn=collate,
        num_workers=8 if device != "cpu" else 1,
        prefetch_factor=4,
    )
    table = torch.from_numpy(embeddings).to(device)
    criterion = Criterion(model.model[-1])
    columns = (
        TextColumn("Detector"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("", total=steps, completed=first)
        for step, batch in enumerate(loader, first):
            images, listed, boxes, positive, mask = (part.to(device) for part in batch)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            raw_boxes, logits = forward(model, images, table[listed])
            losses = criterion(raw_boxes, logits, boxes, positive, mask)
            optimizer.zero_grad()
            losses.sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            ema.update(model)
            progress.update(task, advance=1, description="box {:.2f} class {:.2f} dfl {:.2f}".format(*losses.tolist()))
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                logger.info("Update %d: box %.3f, class %.3f, dfl %.3f.", step + 1, *losses.tolist())
                with replacing(state_file) as path:
                    parts = {"model": model.state_dict(), "ema": ema.ema.state_dict(), "step": step + 1}
                    torch.save(parts | {"optimizer": optimizer.state_dict()}, path)
    trained: nn.Module = deepcopy(ema.ema).cpu().float().eval()
    return trained


def build_model() -> Any:
    """A `WorldModel` built from `YAML`; its initial weights come from torch's random state."""
    model = ultralytics.quiet_import("ultralytics.nn.tasks").WorldModel(deepcopy(YAML), ch=3, verbose=False)
    for contrast in model.model[-1].cv4:  # ultralytics' values, -10 and e^-1, suit much longer schedules
        nn.init.constant_(contrast.bias, -6.0)
        nn.init.constant_(contrast.logit_scale, 0.5)
    return model.train()


def forward(model: Any, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The forward pass of the training: bfloat16 if the processor has it, but text is compared in float32.

    Args:
        model: From `build_model`.
        images: (b, 3, h, w) uint8.
        text: (b, n, 512) float32, unit rows, guide and classes in one.

    Returns:
        Box distributions (b, A, 64) and class logits (b, A, n), float32.
    """
    device = images.device.type
    half = device == "cuda" or torch.cpu._is_avx512_bf16_supported()
    head, outputs = model.model[-1], list[Any]()
    with torch.autocast(device, torch.bfloat16, enabled=half):
        x: Any = (images.float() / 255).contiguous(memory_format=torch.channels_last)
        for layer in model.model[:-1]:
            x = layer_inputs(layer, x, outputs)
            x = layer(x, text) if type(layer).__name__ == "C2fAttn" else layer(x)
            outputs.append(x if layer.i in model.save else None)
        levels = layer_inputs(head, x, outputs)
        boxes = [branch(level).flatten(2) for branch, level in zip(head.cv2, levels, strict=True)]
        regions = [branch(level) for branch, level in zip(head.cv3, levels, strict=True)]
    logits = [contrast(r.float(), text).flatten(2) for contrast, r in zip(head.cv4, regions, strict=True)]
    return torch.cat(boxes, 2).float().transpose(1, 2), torch.cat(logits, 2).transpose(1, 2)


class Criterion:
    """YOLOv8's loss: task-aligned assignment, CIoU, distribution focal loss, cross-entropy; several names per object.

    For the assigner, each object of an image is a class of its own, scored by the mean score of its names. The targets
    that it assigns then go to all names of the object.
    """

    def __init__(self, head: Any) -> None:
        """Take strides and box bins from `head`, the last layer of the model."""
        loss = ultralytics.quiet_import("ultralytics.utils.loss")
        self.tal = ultralytics.quiet_import("ultralytics.utils.tal")
        self.box_loss = loss.BboxLoss(head.reg_max)
        self.strides, self.reg_max = head.stride, head.reg_max
        self.assigner = self.tal.TaskAlignedAssigner(topk=10, num_classes=1, alpha=0.5, beta=6.0)

    def __call__(self, raw: Tensor, logits: Tensor, boxes: Tensor, positive: Tensor, mask: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            raw: (b, A, 64) float32, box distributions from `forward`.
            logits: (b, A, n) float32, from `forward`.
            boxes: (b, m, 4) float32, x1 y1 x2 y2 in pixels, padded.
            positive: (b, m, n) float32, 1 where a name describes an object.
            mask: (b, m, 1), 1 for real objects, 0 for padding.

        Returns:
            (3,) box, class and distribution focal loss.
        """
        side = int(math.sqrt(raw.shape[1] / sum((1 / s) ** 2 for s in self.strides.tolist())) + 0.5)
        grids = [raw.new_empty(1, 1, side // int(s), side // int(s)) for s in self.strides]
        points, strides = self.tal.make_anchors(grids, self.strides.to(raw.device), 0.5)  # (A, 2), (A, 1)
        bins = torch.arange(self.reg_max, dtype=raw.dtype, device=raw.device)
        distances = raw.unflatten(2, (4, self.reg_max)).softmax(3) @ bins  # (b, A, 4)
        predicted = self.tal.dist2bbox(distances, points, xywh=False)  # (b, A, 4), in cells

        named = positive.sum(2).clamp(min=1)  # (b, m)
        scores = logits.detach().sigmoid() @ positive.transpose(1, 2) / named[:, None]  # (b, A, m)
        n_objects = boxes.shape[1]
        self.assigner.num_classes = n_objects
        labels = torch.arange(n_objects, device=raw.device).expand(len(raw), -1)[..., None]  # (b, m, 1)
        _, target_boxes, target_scores, foreground, _ = self.assigner(
            scores, predicted.detach() * strides, points * strides, labels, boxes, mask
        )
        total = target_scores.sum().clamp(min=1)
        target_names = target_scores @ positive  # (b, A, n)
        loss_class = nn.functional.binary_cross_entropy_with_logits(logits, target_names, reduction="sum") / total
        loss_box, loss_dfl = raw.new_zeros(()), raw.new_zeros(())
        if foreground.any():
            size = raw.new_tensor([side, side])
            loss_box, loss_dfl = self.box_loss(
                raw, predicted, points, target_boxes / strides, target_scores, total, foreground, size, strides
            )
        return torch.stack([BOX_GAIN * loss_box, CLASS_GAIN * loss_class, DFL_GAIN * loss_dfl])


def learning_rate(step: int, steps: int) -> float:
    """The learning rate of an update: linear warm-up, then a cosine that falls to a hundredth."""
    if step < WARM_UP:
        return PEAK_LR * (step + 1) / WARM_UP
    part = (step - WARM_UP) / max(1, steps - WARM_UP)
    return PEAK_LR * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))


def _groups(model: nn.Module) -> list[dict[str, object]]:
    """Parameter groups: matrices and kernels get weight decay; norms, biases and scales do not."""
    decay = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    rest = [p for p in model.parameters() if p.ndim <= 1 and p.requires_grad]
    return [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
