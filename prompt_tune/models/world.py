"""YOLO-World (arXiv 2401.17270), frozen, and split in two places.

One is the guide, which steers the neck. The other is the head's last 1x1 convolution, which folds with norm, scale,
bias and class embedding into one matrix per level (`blocks.FoldedHead`).
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_tune import hub
from prompt_tune.contract import EMBED_DIM
from prompt_tune.errors import ModelError, ProviderError
from prompt_tune.models import ultralytics
from prompt_tune.models.blocks import FoldedHead, attend_to_image
from prompt_tune.models.ultralytics import block, check_world, layer_inputs, load_folder
from prompt_tune.runtime.devices import check_visible, named

TINY = "tiny"
NOT_IN_DIGEST = ("yaml_file", "nc", "ch", "channels", "scales", "scale")  # path, class count, and unresolved scales
UNIT_NORM_ATOL = 1e-3  # text features may have been stored as float16
logger = logging.getLogger(__name__)


class World:
    """A frozen YOLO-World detector, v1 or v2.

    Attributes:
        model: ultralytics' `WorldModel` in eval mode, float32, without gradients.
        yaml: The mapping in the model's YAML.
        digest: SHA-256 of the detector, see `detector_digest`.
        strides: The distance of anchors on each level, in pixels of the network's input, such as (8, 16, 32).
        n_levels: The number of levels.
        c3: Channels of the head features: those of the last 1x1 convolution's input, and one more in v1 (`FoldedHead`).
        names: The checkpoint's own class names, or None if it has placeholders.
        class_embeddings: (n, 512) float32, unit rows, the checkpoint's own text features; None if it has noise. They
            belong to `names`, but may be more or fewer: see `own_classes`.
        head: The folded head.
        source_name: What `load` was given.
        device: Where the parameters are.
    """

    embed_dim = EMBED_DIM

    def __init__(self, model: nn.Module, *, source_name: str = "model", device: str = "cpu") -> None:
        """Freezes a YOLO-World.

        Args:
            model: A `WorldModel`, which is changed in place: float32, eval mode, no gradients.
            source_name: What it was loaded from, for error texts.
            device: A torch device.

        Raises:
            ModelError: The model is not a YOLO-World with an unfused head.
        """
        check_world(model, source_name)
        frozen: Any = model.float().eval().requires_grad_(False).to(device)
        self.model = frozen
        self.source_name = source_name
        self.device = torch.device(device)
        self.yaml: dict[str, Any] = dict(self.model.yaml)
        self._layers, self._head = frozen.model[:-1], frozen.model[-1]
        self._guided = {layer.i for layer in self._layers if isinstance(layer, block("C2fAttn"))}
        self._pooling = {layer.i for layer in self._layers if isinstance(layer, block("ImagePoolingAttn"))}
        self._neck = min(self._guided)  # the first layer that text reaches
        self.strides = tuple(int(stride) for stride in self._head.stride)
        self.n_levels = len(self.strides)
        self.head = FoldedHead(self._head)
        self.c3 = int(self._head.cv3[0][-1].in_channels) + (self.head.factor is not None)
        self.digest = detector_digest(self.yaml, self.model.state_dict())
        self.names, self.class_embeddings = self._own_classes()

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu") -> "World":
        """Loads and freezes a detector. Loading a `.pt` runs code that is in it: load only files you trust.

        Args:
            source: "tiny" (ships with the package), a `.pt` checkpoint of ultralytics, an official name such as
                "yolov8s-worldv2.pt" (downloaded if there is no such file), or a folder in the layout of `tiny`
                (detector.yaml, detector.safetensors). "hf://user/name" is such a folder on the Hugging Face Hub, and
                "hf://user/name/FILE.pt" a checkpoint there.
            device: A torch device.

        Raises:
            ModelError: There is no such file, or it is not a YOLO-World.
            PromptTuneError: The Hub does not give it.
        """
        name = str(source)
        if name == TINY:
            from importlib.resources import as_file, files

            with as_file(files("prompt_tune") / TINY / "weights") as folder:
                return cls(load_folder(folder), source_name=name, device=device)
        path = _from_hub(name) if hub.is_on_hub(name) else Path(source)
        if path.is_dir():
            return cls(load_folder(path), source_name=name, device=device)
        if not path.exists() and name in ultralytics.OFFICIAL:
            path = ultralytics.download(name)
        if not path.exists():
            raise ModelError(
                f"There is no detector '{name}'; give 'tiny', the path of a .pt file, or one of "
                f"{', '.join(ultralytics.OFFICIAL)}."
            )
        if path.suffix.lower() != ".pt":
            raise ModelError(f"'{name}' is not a checkpoint: a detector is a .pt file of ultralytics, or 'tiny'.")
        return cls(ultralytics.load_checkpoint(path), source_name=name, device=device)

    @torch.no_grad()
    def features(self, images: Tensor, guide: Tensor) -> tuple[Tensor, Tensor]:
        """Computes head features and boxes, which do not depend on the classes to detect.

        Args:
            images: (b, 3, h, w) float32, RGB in 0..1; h and w are multiples of the largest stride.
            guide: (n_guide, 512) float32, unit rows: the embeddings that steer the neck.

        Returns:
            Head features (b, A, c3) and boxes (b, A, 4), x1 y1 x2 y2 in pixels of the network's input, both float32. A
            is the sum of h * w / stride^2 over the levels, finest level first, row by row.

        Raises:
            ModelError: An argument has another shape.
        """
        largest = max(self.strides)
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % largest or images.shape[3] % largest:
            raise ModelError(
                f"Images must be (b, 3, h, w) with h and w multiples of {largest}. Received: {tuple(images.shape)}."
            )
        if guide.ndim != 2 or guide.shape[1] != EMBED_DIM or not len(guide):
            raise ModelError(
                f"The guide must be (n, {EMBED_DIM}) with at least one row. Received: {tuple(guide.shape)}."
            )
        head_maps, boxes_xyxy = self.feature_maps(images, guide)
        return join_levels(head_maps), boxes_xyxy

    def feature_maps(self, images: Tensor, guide: Tensor) -> tuple[list[Tensor], Tensor]:
        """Computes `features` without checks and before the levels are joined. The ONNX export traces this.

        Args:
            images: See `features`.
            guide: See `features`.

        Returns:
            Head features of each level (b, c3, h / stride, w / stride), and boxes (b, A, 4) as in `features`.

        Source: ultralytics' `WorldModel.predict` and `WorldDetect.forward`; here no text reaches the head, and nothing
        is kept between calls.
        """
        return self.neck(self.backbone(images), guide)

    def backbone(self, images: Tensor) -> dict[int, Tensor]:
        """Runs the layers that no text reaches. Their outputs do not depend on the guide, so they can be kept.

        Args:
            images: See `features`.

        Returns:
            The outputs that `neck` reads, by layer: (b, channels, h / stride, w / stride) each.
        """
        x: Any = images
        outputs: list[Tensor | None] = []
        for layer in self._layers[: self._neck]:
            x = layer(layer_inputs(layer, x, outputs))
            outputs.append(x if layer.i in self.model.save or layer.i == self._neck - 1 else None)
        return {i: output for i, output in enumerate(outputs) if output is not None}

    def neck(self, kept: Mapping[int, Tensor], guide: Tensor) -> tuple[list[Tensor], Tensor]:
        """Runs the layers that the guide steers, and the head's branches. Differentiable in the guide.

        Args:
            kept: The result of `backbone`.
            guide: (n_guide, 512) float32, unit rows.

        Returns:
            See `feature_maps`.
        """
        outputs = [kept.get(i) for i in range(self._neck)]
        x: Any = outputs[-1]
        guides = guide.unsqueeze(0).expand(x.shape[0], -1, -1)  # (b, n_guide, 512)
        for layer in self._layers[self._neck :]:
            x = layer_inputs(layer, x, outputs)
            if layer.i in self._pooling:
                guides = attend_to_image(layer, x, guides)  # (b, n_guide, 512), now different for each image
            else:
                x = layer(x, guides) if layer.i in self._guided else layer(x)
            outputs.append(x if layer.i in self.model.save else None)
        levels = layer_inputs(self._head, x, outputs)
        head_maps = [self.head.features(i, self._head.cv3[i][:-1](level)) for i, level in enumerate(levels)]
        box_maps = [self._head.cv2[i](level) for i, level in enumerate(levels)]
        return head_maps, self._decode(box_maps)

    def anchors(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the anchor points of an input, in the order of `features`.

        Args:
            height: Height of the network's input in pixels, a multiple of the largest stride.
            width: Likewise its width.

        Returns:
            Points (A, 2) float32, x y in pixels of the network's input; stride (A,) float32; level (A,) int64.
        """
        sizes = [(height // stride, width // stride) for stride in self.strides]
        points, strides = self._anchor_points(sizes)
        counts = torch.tensor([h * w for h, w in sizes], device=self.device)
        level = torch.arange(self.n_levels, device=self.device).repeat_interleave(counts)  # (A,)
        return points * strides[:, None], strides, level

    def fold(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Folds last 1x1 convolution, norm, scale, bias and class embeddings into one affine map of the head features.

        Args:
            embeddings: (n, 512) float32 on this detector's device. They are normalised here, as in the head.

        Returns:
            Weight (n_levels, n, c3) and bias (n_levels, n), differentiable in `embeddings`. The logits of level l are
            head @ weight[l].T + bias[l].
        """
        return self.head.fold(embeddings)

    def logits(self, head: Tensor, level: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Computes class logits of head features.

        Call it once for each vocabulary: then the rows of one vocabulary cannot change a bit of another.

        Args:
            head: (b, A, c3) float32.
            level: (A,) or (b, A) int64, the level of each anchor.
            weight: See `fold`.
            bias: See `fold`.

        Returns:
            (b, A, n) float32; their sigmoid is the score.
        """
        level = level.expand(head.shape[:2])  # (b, A)
        out = head.new_zeros(*head.shape[:2], weight.shape[1])  # (b, A, n)
        for i in range(self.n_levels):
            here = level == i
            out[here] = torch.addmm(bias[i], head[here], weight[i].T)  # (anchors of the level, n)
        return out

    def _anchor_points(self, sizes: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        """Cell centres (A, 2) in cells, and strides (A,), from (height, width) of each level. Sizes may be traced."""
        points, strides = [], []
        for (height, width), stride in zip(sizes, self.strides, strict=True):
            x = torch.arange(width, device=self.device, dtype=torch.float32) + 0.5
            y = torch.arange(height, device=self.device, dtype=torch.float32) + 0.5
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            point = torch.stack((grid_x, grid_y), dim=-1).flatten(0, 1)  # (height * width, 2)
            points.append(point)
            strides.append(torch.full_like(point[:, 0], float(stride)))
        return torch.cat(points), torch.cat(strides)

    def _decode(self, box_maps: list[Tensor]) -> Tensor:
        """Boxes (b, A, 4), x1 y1 x2 y2 in pixels of the network's input, from (b, 4 * reg_max, h, w) of each level."""
        points, strides = self._anchor_points([(box_map.shape[2], box_map.shape[3]) for box_map in box_maps])
        distribution = torch.cat([box_map.flatten(2) for box_map in box_maps], dim=2)  # (b, 4 * reg_max, A)
        distances = self._head.dfl(distribution).transpose(1, 2)  # (b, A, 4): left, top, right, bottom, in cells
        left_top, right_bottom = distances[..., :2], distances[..., 2:]
        boxes_xyxy = torch.cat((points - left_top, points + right_bottom), dim=-1)  # (b, A, 4)
        return boxes_xyxy * strides[:, None]

    def _own_classes(self) -> tuple[tuple[str, ...] | None, Tensor | None]:
        """The class names and unit text features in the checkpoint."""
        raw = self.model.names
        names = tuple(str(name) for name in (raw.values() if isinstance(raw, dict) else raw))
        if names == tuple(str(i) for i in range(len(names))):
            return None, None  # the placeholders of a model that was built from its YAML
        rows = self.model.txt_feats.detach().float().to(self.device).reshape(-1, EMBED_DIM)  # (n, 512)
        unit = bool(((rows.norm(dim=1) - 1).abs() < UNIT_NORM_ATOL).all())
        if not unit:
            logger.info("'%s' has no text features of its own with which to check a text tower.", self.source_name)
            return names, None
        return names, F.normalize(rows, dim=1)


def _from_hub(name: str) -> Path:
    """The file or folder of a detector on the Hub. A `.pt` is code, so it is loaded only if it is named."""
    wanted = hub.parse(name)
    if not wanted.path.lower().endswith(".pt"):
        cure = f"A checkpoint is code, so it has to be named: {hub.Reference(wanted.repo, wanted.revision, 'FILE.pt')}"
        return hub.local_folder(name, ("detector.yaml", "detector.safetensors"), cure)
    path = hub.local_file(name)
    logger.warning(
        "%s is code of whoever owns hf://%s, and loading it runs it (commit %s).",
        wanted.path,
        wanted.repo,
        hub.commit_of(path),
    )
    return path


def region_logits(world: World, head: Tensor, level: Tensor, embeddings: Tensor) -> Tensor:
    """Computes class logits of regions. The logit of a class is the maximum over its prompts.

    Args:
        world: The detector.
        head: (r, c3) float32, head features.
        level: (r,) int64, the level of each region.
        embeddings: (n_cls, n_prompts, 512) float32.

    Returns:
        (r, n_cls) float32, differentiable in the embeddings.
    """
    n_cls, n_prompts = embeddings.shape[:2]
    weight, bias = world.fold(embeddings.flatten(0, 1))  # n_cls * n_prompts rows, those of a class together
    logits = world.logits(head[None], level, weight, bias)[0]  # (r, n_cls * n_prompts)
    return logits.unflatten(1, (n_cls, n_prompts)).amax(2)  # (r, n_cls)


def level_logits(head: Tensor, ends: Sequence[int], weight: Tensor, bias: Tensor, n_prompts: int = 1) -> Tensor:
    """Logits of regions that stand level after level.

    Args:
        head: (r, c3) float16 or float32, head features.
        ends: Where each level ends in `head`.
        weight: (n_levels, n_cls * n_prompts, c3), see `World.fold`.
        bias: (n_levels, n_cls * n_prompts).
        n_prompts: The prompts of a class; the best one counts.

    Returns:
        (r, n_cls) float32, on the device of the weight.
    """
    head = head.to(weight.device).float()
    bounds = pairwise((0, *ends))
    rows = [torch.addmm(bias[i], head[first:end], weight[i].T) for i, (first, end) in enumerate(bounds)]
    logits = torch.cat(rows)  # (r, n_cls * n_prompts)
    return logits if n_prompts == 1 else logits.unflatten(1, (-1, n_prompts)).amax(2)


def detector_digest(yaml: dict[str, Any], state: dict[str, Tensor]) -> str:
    """Computes the SHA-256 of a detector, which depends on nothing but its structure and weights.

    Args:
        yaml: The mapping in the model's YAML. Its path, the number of classes and unused scales do not count.
        state: The state dict. Floating-point tensors count as float32; the integer counters of batch norm do not count.

    Returns:
        64 hexadecimal digits.
    """
    structure = {key: value for key, value in yaml.items() if key not in NOT_IN_DIGEST}
    scales = yaml.get("scales") or {}
    structure["scale"] = list(scales[yaml.get("scale") or next(iter(scales))]) if scales else None
    digest = hashlib.sha256(json.dumps(structure, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        if tensor.is_floating_point():
            digest.update(json.dumps([name, list(tensor.shape)]).encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def join_levels(head_maps: Sequence[Tensor]) -> Tensor:
    """Joins head maps (b, c3, h, w) of all levels to head features (b, A, c3), in the order of `World.features`."""
    head = torch.cat([head_map.flatten(2) for head_map in head_maps], dim=2)  # (b, c3, A)
    return head.transpose(1, 2).contiguous()


def torch_device(device: str | int) -> str:
    """The name of a device, checked.

    Args:
        device: "cpu", "cuda", "cuda:1", or the number of a GPU, as ultralytics takes it; or another device of torch.

    Returns:
        The name that torch has for it.

    Raises:
        ProviderError: torch does not know the device, or cannot use it, or the environment hides it.
    """
    check_visible(device)
    name = named(device)
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # which one depends on the kind of device
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ProviderError(
            f"torch cannot use the device '{device}': {reason}. Check for a GPU with `nvidia-smi`, or give cpu."
        ) from error
    return name
