"""YOLO-World (arXiv 2401.17270), frozen and split in two places: at the guide that steers the neck, and at the head's
last 1x1 convolution, which folds with norm, scale, bias and class embedding into one matrix a level (`head`).
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_tune.contract import EMBED_DIM
from prompt_tune.errors import ModelError, ProviderError
from prompt_tune.models import ultralytics
from prompt_tune.models.blocks import FoldedHead, attend_to_image
from prompt_tune.models.ultralytics import block, check_world, load_folder

TINY = "tiny"
NOT_IN_DIGEST = ("yaml_file", "nc", "ch", "channels", "scales", "scale")  # paths, class count, and unresolved scales
UNIT_NORM_ATOL = 1e-3  # text features may have been stored as float16
logger = logging.getLogger(__name__)


class World:
    """A frozen YOLO-World detector, v1 or v2.

    Attributes:
        model: ultralytics' `WorldModel` in eval mode, float32, no parameter requires a gradient.
        yaml: the model's YAML as a dict.
        digest: SHA-256 over the canonical YAML and the sorted float32 state dict (`detector_digest`).
        strides: pixels of the network's input an anchor stands for, a level, e.g. (8, 16, 32).
        c3: channels of the head features: what the last 1x1 convolution takes, in v1 one more (`FoldedHead`).
        names: the checkpoint's own class names, or None where it holds placeholders.
        class_embeddings: (n, 512) float32, unit rows, of `names`; None where the checkpoint holds noise.
        head: the folded head.
        source_name: what `load` was given.
        device: where the parameters are.
    """

    embed_dim = EMBED_DIM

    def __init__(self, model: nn.Module, *, source_name: str = "model", device: str = "cpu") -> None:
        """Freezes `model`, a YOLO-World.

        Args:    model: a `WorldModel`; it is changed in place: float32, eval mode, no gradients.
                 source_name: stands in error texts.
                 device: torch device.
        Raises:  ModelError: the model is not a YOLO-World with an unfused head.
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
        """A detector by name or path. Loading a `.pt` runs code that is in it: load only files you trust.

        Args:    source: "tiny" (ships with the package), a `.pt` checkpoint of ultralytics, an official name such as
                     "yolov8s-worldv2.pt" (downloaded when no such file is here), or a folder in the layout of `tiny`
                     (detector.yaml, detector.safetensors).
                 device: torch device.
        Returns: the frozen detector.
        Raises:  ModelError: there is no such file, or it is not a YOLO-World.
        """
        name = str(source)
        if name == TINY:
            from importlib.resources import as_file, files

            with as_file(files("prompt_tune") / TINY / "weights") as folder:
                return cls(load_folder(folder), source_name=name, device=device)
        path = Path(source)
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
        """Head features and boxes: all that does not depend on the classes that are looked for.

        Args:    images: (b, 3, h, w) float32, RGB in 0..1; h and w are multiples of the largest stride.
                 guide: (n_guide, 512) float32, unit rows: the embeddings that steer the neck.
        Returns: head features (b, A, c3) and boxes (b, A, 4), x1 y1 x2 y2 in pixels of the network's input, both
                 float32; A = sum of h * w / stride^2 over the levels, finest level first, row by row.
        Raises:  ModelError: the shape of an argument breaks the rule above.
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
        """`features` before the levels are joined, without checks: what the ONNX export traces.

        Args:    images, guide: as in `features`.
        Returns: head features of each level (b, c3, h / stride, w / stride), and boxes (b, A, 4) as in `features`.
        Source:  ultralytics' `WorldModel.predict` and `WorldDetect.forward`; here no text reaches the head, and nothing
                 is kept between calls.
        """
        return self.neck(self.backbone(images), guide)

    def backbone(self, images: Tensor) -> dict[int, Tensor]:
        """The layers that no text reaches: their outputs do not depend on the guide, and can be kept.

        Args:    images: as in `features`.
        Returns: what `neck` takes: the outputs that it reads, by layer, (b, channels, h / stride, w / stride) each.
        """
        x: Any = images
        outputs: list[Tensor | None] = []
        for layer in self._layers[: self._neck]:
            x = layer(layer_inputs(layer, x, outputs))
            outputs.append(x if layer.i in self.model.save or layer.i == self._neck - 1 else None)
        return {i: output for i, output in enumerate(outputs) if output is not None}

    def neck(self, kept: Mapping[int, Tensor], guide: Tensor) -> tuple[list[Tensor], Tensor]:
        """The layers that the guide steers, and the head's branches. Differentiable in the guide.

        Args:    kept: of `backbone`. guide: (n_guide, 512) float32, unit rows.
        Returns: as `feature_maps`.
        """
        outputs = [kept.get(i) for i in range(self._neck)]
        x: Any = outputs[-1]
        guides = guide.unsqueeze(0).expand(x.shape[0], -1, -1)  # (b, n_guide, 512)
        for layer in self._layers[self._neck :]:
            x = layer_inputs(layer, x, outputs)
            if layer.i in self._pooling:
                guides = attend_to_image(layer, x, guides)  # (b, n_guide, 512), an image its own
            else:
                x = layer(x, guides) if layer.i in self._guided else layer(x)
            outputs.append(x if layer.i in self.model.save else None)
        levels = layer_inputs(self._head, x, outputs)
        head_maps = [self.head.features(i, self._head.cv3[i][:-1](level)) for i, level in enumerate(levels)]
        box_maps = [self._head.cv2[i](level) for i, level in enumerate(levels)]
        return head_maps, self._decode(box_maps)

    def anchors(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """The anchor points of an input, in the order of `features`.

        Args:    height, width: of the network's input in pixels, multiples of the largest stride.
        Returns: points (A, 2) float32, x y in pixels of the network's input; stride (A,) float32; level (A,) int64.
        """
        sizes = [(height // stride, width // stride) for stride in self.strides]
        points, strides = self._anchor_points(sizes)
        counts = torch.tensor([h * w for h, w in sizes], device=self.device)
        level = torch.arange(self.n_levels, device=self.device).repeat_interleave(counts)  # (A,)
        return points * strides[:, None], strides, level

    def fold(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Last 1x1 convolution, norm, scale, bias and class embedding as one affine map of the head features.

        Args:    embeddings: (n, 512) float32 on this detector's device; normalised here as the head does.
        Returns: weight (n_levels, n, c3) and bias (n_levels, n): logits of level l are head @ weight[l].T + bias[l].
                 Differentiable in `embeddings`.
        """
        return self.head.fold(embeddings)

    def logits(self, head: Tensor, level: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Class logits of head features. One call a vocabulary: then the rows of one cannot touch the bits of another.

        Args:    head: (b, A, c3) float32.
                 level: (A,) or (b, A) int64, the level that each anchor belongs to.
                 weight, bias: from `fold`.
        Returns: (b, A, n) float32; their sigmoid is the score.
        """
        level = level.expand(head.shape[:2])  # (b, A)
        out = head.new_zeros(*head.shape[:2], weight.shape[1])  # (b, A, n)
        for i in range(self.n_levels):
            here = level == i
            out[here] = torch.addmm(bias[i], head[here], weight[i].T)  # (anchors of the level, n)
        return out

    def _anchor_points(self, sizes: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
        """Cell centres (A, 2) in cells and strides (A,), from (height, width) of each level; sizes may be traced."""
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
        """(b, 4 * reg_max, h, w) a level to boxes (b, A, 4), x1 y1 x2 y2 in pixels of the network's input."""
        points, strides = self._anchor_points([(box_map.shape[2], box_map.shape[3]) for box_map in box_maps])
        distribution = torch.cat([box_map.flatten(2) for box_map in box_maps], dim=2)  # (b, 4 * reg_max, A)
        distances = self._head.dfl(distribution).transpose(1, 2)  # (b, A, 4): left, top, right, bottom, in cells
        left_top, right_bottom = distances[..., :2], distances[..., 2:]
        boxes_xyxy = torch.cat((points - left_top, points + right_bottom), dim=-1)  # (b, A, 4)
        return boxes_xyxy * strides[:, None]

    def _own_classes(self) -> tuple[tuple[str, ...] | None, Tensor | None]:
        """Names and unit text features that came with the checkpoint."""
        raw = self.model.names
        names = tuple(str(name) for name in (raw.values() if isinstance(raw, dict) else raw))
        if names == tuple(str(i) for i in range(len(names))):
            return None, None  # what a model built from its YAML calls its classes
        rows = self.model.txt_feats.detach().float().to(self.device).reshape(-1, EMBED_DIM)  # (n, 512)
        unit = bool(((rows.norm(dim=1) - 1).abs() < UNIT_NORM_ATOL).all())
        if len(rows) != len(names) or not unit:
            logger.info("'%s' has no text features of its own: cannot check a text tower with them.", self.source_name)
            return names, None
        return names, F.normalize(rows, dim=1)


def region_logits(world: World, head: Tensor, level: Tensor, embeddings: Tensor) -> Tensor:
    """Class logits of regions; a class scores the maximum over its prompts.

    Args:    head: (r, c3) float32. level: (r,) int64. embeddings: (n_cls, n_prompts, 512) float32.
    Returns: (r, n_cls) float32, differentiable in the embeddings.
    """
    n_cls, n_prompts = embeddings.shape[:2]
    weight, bias = world.fold(embeddings.flatten(0, 1))  # rows: n_cls * n_prompts, prompts of a class together
    logits = world.logits(head[None], level, weight, bias)[0]  # (r, n_cls * n_prompts)
    return logits.unflatten(1, (n_cls, n_prompts)).amax(2)  # (r, n_cls)


def detector_digest(yaml: dict[str, Any], state: dict[str, Tensor]) -> str:
    """SHA-256 of a detector: the same for the same structure and weights, wherever the file lies.

    Args:    yaml: the model's YAML. Paths, the number of classes and the scales that are not used do not count.
             state: the state dict; floating-point tensors count as float32, integer counters of batch norm do not.
    Returns: 64 hexadecimal digits.
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
    """Head features (b, A, c3) of all levels, in the order of `World.features`, from (b, c3, h, w) of each."""
    head = torch.cat([head_map.flatten(2) for head_map in head_maps], dim=2)  # (b, c3, A)
    return head.transpose(1, 2).contiguous()


def layer_inputs(layer: Any, x: Any, outputs: list[Tensor | None]) -> Any:
    """What a layer of ultralytics takes: the output before it (`f` is -1), that of another layer, or a list of them."""
    if layer.f == -1:
        return x
    if isinstance(layer.f, int):
        return outputs[layer.f]
    return [x if index == -1 else outputs[index] for index in layer.f]


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Args:    device: a torch device such as "cpu", "cuda" or "cuda:1".
    Raises:  ProviderError: torch does not know the device or cannot use it.
    """
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises, by kind of device
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ProviderError(
            f"torch cannot use the device '{device}': {reason}. Check for a GPU with `nvidia-smi`, or give cpu."
        ) from error
