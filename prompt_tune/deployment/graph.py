"""The ONNX graph (opset 17): frozen detector, contrastive head and suppression, with vocabularies as inputs.

No operation takes both original and learned classes, so no learned row can change a bit of an original detection.
"""

import copy
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompt_tune.contract import (
    DETECTION_COLUMNS,
    GRAPH_VERSION,
    INPUTS,
    MAX_IMAGE_SIZE,
    MAX_PER_CLASS,
    MAX_SLOTS,
    METADATA_KEY,
    OUTPUTS,
    RAW_INPUTS,
    RAW_OUTPUTS,
    may_be,
)
from prompt_tune.errors import GraphError
from prompt_tune.files import replacing
from prompt_tune.models.suppression import suppress
from prompt_tune.models.world import World
from prompt_tune.runtime.providers import quiet_onnxruntime
from prompt_tune.runtime.slots import Slots

if TYPE_CHECKING:
    import onnx

OPSET = 17
DYNAMIC_AXES = {
    "images": {0: "batch", 2: "height", 3: "width"},
    "original": {0: "n_original", 1: "n_prompts"},
    "learned": {0: "n_learned", 1: "n_learned_prompts"},
    "original_detections": {0: "n_original_detections"},
    "learned_detections": {0: "n_learned_detections"},
    "boxes": {0: "batch", 1: "n_anchors"},
    "original_scores": {0: "batch", 1: "n_original", 2: "n_anchors"},
    "learned_scores": {0: "batch", 1: "n_learned", 2: "n_anchors"},
}
# batch, height and width in strides, n_original, its n_prompts, n_learned, its n_prompts
TRACED_SHAPE = (2, 3, 2, 3, 2, 2, 3)
CHECKED_SHAPES = ((1, 2, 3, 5, 1, 0, 1), (3, 1, 4, 1, 3, 7, 2), (1, 4, 4, 80, 1, 1, 1))
RTOL, ATOL = 1e-3, 1e-5  # as in DETR's test of its ONNX export; boxes are divided by the input's longer side first
FLOAT32_ERRORS = 4  # random weights can amplify rounding errors, so the graph's may be a few times as large as torch's


class DetectorGraph(nn.Module):
    """The module that is traced: images and two vocabularies in, two tables of detections out (DESIGN, section 7)."""

    def __init__(self, world: World) -> None:
        """Holds `world`, whose parameters become the graph's initializers."""
        super().__init__()
        self.world = world
        self.detector = world.model
        self.head = world.head  # registered, so that the graph holds its constants once and not at each use
        self.eval()

    def raw(self, images: Tensor, original: Tensor, learned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes boxes and scores before suppression.

        Args:
            images: (b, 3, h, w) float32, RGB in 0..1.
            original: (n_original, n_prompts, 512) float32, both guide and classes.
            learned: (n_learned, n_prompts', 512) float32; n_learned may be 0.

        Returns:
            Boxes (b, A, 4), x1 y1 x2 y2 in pixels of the network's input; scores (b, n_original, A) and
            (b, n_learned, A), in 0..1.
        """
        head_maps, boxes_xyxy = self.world.feature_maps(images, original.flatten(0, 1))
        flat = [head_map.flatten(2) for head_map in head_maps]  # (b, c3, h * w / stride^2) for each level
        return boxes_xyxy, self._scores(flat, original), self._scores(flat, learned)

    def forward(
        self,
        images: Tensor,
        original: Tensor,
        learned: Tensor,
        iou: Tensor,
        original_conf: Tensor,
        learned_conf: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Computes the detections of both vocabularies, each suppressed separately.

        Args:
            images: See `raw`.
            original: See `raw`.
            learned: See `raw`.
            iou: (1,) float32. A box is dropped if it overlaps a box of its class and a higher score by more than this.
            original_conf: (1,) float32. Original detections have a score above this.
            learned_conf: (1,) float32. Learned detections have a score above this.

        Returns:
            Two tables (n, 7) float32: image index, x1, y1, x2, y2 in pixels of the network's input, score, class. Rows
            are sorted by image, then class, then falling score, then anchor.
        """
        boxes_xyxy, original_scores, learned_scores = self.raw(images, original, learned)
        return (
            _detections(boxes_xyxy, original_scores, iou, original_conf),
            _detections(boxes_xyxy, learned_scores, iou, learned_conf),
        )

    def _scores(self, head: list[Tensor], embeddings: Tensor) -> Tensor:
        """Scores (b, n_cls, A): the maximum over the prompts of a class. The vocabulary is folded once per call."""
        weight, bias = self.world.fold(embeddings.flatten(0, 1))
        levels = [weight[i] @ features + bias[i][:, None] for i, features in enumerate(head)]
        logits = torch.cat(levels, dim=2)  # (b, n_cls * n_prompts, A)
        n_cls, n_prompts = embeddings.shape[:2]
        prompts = logits.reshape(logits.shape[0], n_cls, n_prompts, logits.shape[2])  # (b, n_cls, n_prompts, A)
        return prompts.amax(dim=2).sigmoid()


class SlotGraph(DetectorGraph):
    """The same, where a learned class whose row is zero is none: its score is 0, not the sigmoid of the bias."""

    def raw(self, images: Tensor, original: Tensor, learned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `DetectorGraph.raw`."""
        boxes_xyxy, original_scores, learned_scores = super().raw(images, original, learned)
        is_used = (learned.abs().amax(dim=(1, 2)) > 0)[None, :, None]  # (1, n_learned, 1)
        # not a product: a runtime in float16 may make NaN of a zero row, which has no direction
        return boxes_xyxy, original_scores, torch.where(is_used, learned_scores, torch.zeros_like(learned_scores))


class _Raw(nn.Module):
    """A graph that ends before suppression."""

    def __init__(self, graph: DetectorGraph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images: Tensor, original: Tensor, learned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.graph.raw(images, original, learned)


def export_graph(
    world: World,
    path: Path | str,
    *,
    image_size: int = 640,
    opset: int = OPSET,
    exact: World | None = None,
    slots: Slots | None = None,
    suppression: bool = True,
) -> None:
    """Exports the detector as an ONNX file. The file is written only if it agrees with torch.

    Args:
        world: The detector, on the CPU.
        path: The file to write.
        image_size: Side in pixels of the square to which images are letterboxed by default; it goes into the metadata.
        opset: The graph's opset.
        exact: The detector in float32, if `world` is its float16 copy (`half.half_world`).
        slots: The sizes of the vocabularies, for a graph of fixed shapes: one image of `image_size`. Unused rows of
            `original` must repeat a used one, since they guide; unused rows of `learned` must be zero. By default,
            batch, image size and vocabularies have any size.
        suppression: Whether the graph suppresses. Without, its outputs are those of `DetectorGraph.raw`.

    Raises:
        GraphError: The graph is not valid, or disagrees with torch, on shapes that were not traced unless they are
            fixed; or the image size or `slots` is over its limit.
    """
    if not may_be("image_size", image_size):
        raise GraphError(f"`image_size` must be from 1 to {MAX_IMAGE_SIZE} pixels. Received: {image_size}.")
    if slots and not may_be("slots", slots.count):
        raise GraphError(f"`slots` must be from 1 to {MAX_SLOTS} classes. Received: {slots.count}.")
    module = (SlotGraph if slots else DetectorGraph)(world)
    shape = _fixed_shape(slots, image_size // max(world.strides)) if slots else TRACED_SHAPE
    metadata: dict[str, Any] = {
        "version": GRAPH_VERSION,
        "detector": world.digest,
        "embed_dim": world.embed_dim,
        "image_size": image_size,
        "strides": list(world.strides),
        "precision": "float32" if exact is None else "float16",
    }
    if slots:
        metadata["slots"] = slots.count
    if not suppression:
        metadata["suppression"] = False
    with replacing(path) as temporary:
        _trace(module, temporary, opset, shape=shape, is_fixed=slots is not None, suppression=suppression)
        if slots:
            _fold(temporary)
        _label(temporary, metadata)
        check_graph(world, temporary, exact=exact, fixed=shape if slots else None)


def check_graph(
    world: World, path: Path | str, *, exact: World | None = None, fixed: Sequence[int] | None = None
) -> None:
    """Compares a graph with torch on shapes that were not traced.

    Before suppression, scores and boxes must agree with torch in float64, within `RTOL`, `ATOL` and `FLOAT32_ERRORS`
    times the largest error of torch in `world`'s own precision. After it, the rows must be exactly those that
    suppression in torch makes of the graph's own scores and boxes.

    Args:
        world: The detector from which the graph was exported.
        path: The ONNX file.
        exact: See `export_graph`.
        fixed: The shape of a graph with slots, like `TRACED_SHAPE`: the only one that it takes.

    Raises:
        GraphError: The file is not a valid ONNX graph, or disagrees with torch.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, OSError, ValueError) as error:
        raise GraphError(f"'{path}' is not a valid ONNX graph ({error!r:.200}).") from error
    session = raw_session(model)
    kind = SlotGraph if fixed else DetectorGraph
    reference = kind(world)
    true = copy.deepcopy(kind(exact or world)).double()
    for shape in (fixed,) if fixed else CHECKED_SHAPES:
        _check_shape(session, reference, true, shape)


def raw_session(model: "onnx.ModelProto") -> Any:
    """Opens a CPU session whose last outputs are boxes, original scores and learned scores, after tables if any."""
    import onnx

    onnxruntime = quiet_onnxruntime()
    makers = {name: node for node in model.graph.node for name in node.output}
    raw = []
    for output in (entry.name for entry in model.graph.output if entry.name in OUTPUTS):
        nodes = [makers[output]]
        while nodes and nodes[0].op_type != "NonMaxSuppression":  # the first on the way back
            nodes = [*nodes[1:], *(makers[name] for name in nodes[0].input if name in makers)]
        raw += nodes[0].input[:2]
    for name in dict.fromkeys(raw):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class _Suppress(torch.autograd.Function):
    """In torch, `suppress` for each image; in the graph, one `NonMaxSuppression` node.

    `forward` also runs while the graph is traced, where some operations break the exporter: see `suppress`.
    """

    @staticmethod
    def forward(ctx: Any, boxes_xyxy: Tensor, scores: Tensor, limit: Tensor, iou: Tensor, conf: Tensor) -> Tensor:
        rows = []
        for image, (boxes, class_scores) in enumerate(zip(boxes_xyxy, scores, strict=True)):
            label, anchor = suppress(boxes, class_scores.T, conf=float(conf), iou=float(iou))
            rows.append(torch.stack((torch.full_like(label, image), label, anchor), dim=1))  # (n, 3)
        return torch.cat(rows)

    @staticmethod
    def symbolic(g: Any, boxes_xyxy: Any, scores: Any, limit: Any, iou: Any, conf: Any) -> Any:
        return g.op("NonMaxSuppression", boxes_xyxy, scores, limit, iou, conf)


def _detections(boxes_xyxy: Tensor, scores: Tensor, iou: Tensor, conf: Tensor) -> Tensor:
    """The rows (n, 7) of one vocabulary, from boxes (b, A, 4) and scores (b, n_cls, A)."""
    limit = torch.tensor([MAX_PER_CLASS], dtype=torch.int64)
    kept: Any = _Suppress.apply(boxes_xyxy, scores, limit, iou, conf)  # (n, 3)
    image, index, anchor = kept[:, 0], kept[:, 1], kept[:, 2]
    n_cls, n_anchors = scores.shape[1], scores.shape[2]
    boxes = boxes_xyxy.reshape(-1, 4)[image * n_anchors + anchor]  # (n, 4)
    score = scores.reshape(-1)[(image * n_cls + index) * n_anchors + anchor]  # (n,)
    return torch.cat((image[:, None].float(), boxes, score[:, None], index[:, None].float()), dim=1)  # (n, 7)


def _fixed_shape(slots: Slots, size: int) -> tuple[int, ...]:
    """The only shape of a graph with slots, like `TRACED_SHAPE`; `size` is that of the image in strides."""
    return 1, size, size, slots.count, slots.n_prompts, slots.count, slots.n_learned_prompts


def _trace(
    module: DetectorGraph,
    path: Path,
    opset: int,
    *,
    shape: Sequence[int] = TRACED_SHAPE,
    is_fixed: bool = False,
    suppression: bool = True,
) -> None:
    """Writes the module as an ONNX file; unless it `is_fixed`, with dynamic batch, image size and vocabularies."""
    vocabularies, limits = _example(shape, max(module.world.strides)), _thresholds()
    inputs, outputs = (INPUTS, OUTPUTS) if suppression else (RAW_INPUTS, RAW_OUTPUTS)
    free = (OUTPUTS if suppression else ()) if is_fixed else (*inputs, *outputs)  # a table has any number of rows
    with torch.no_grad(), warnings.catch_warnings():
        # the exporter warns that it is deprecated, and of traced sizes, which `check_graph` checks
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module if suppression else _Raw(module).eval(),
            (*vocabularies, *limits) if suppression else vocabularies,
            path,
            dynamo=False,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: axes for name, axes in DYNAMIC_AXES.items() if name in free},
        )


def _fold(path: Path) -> None:
    """Computes in a graph of fixed shapes what depends on shapes alone, so that compilers find none that is free."""
    import onnx

    onnxruntime = quiet_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # ONNX's operators only
    with tempfile.TemporaryDirectory(prefix="prompt-tune-graph-") as folder:
        folded = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(folded)
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        model = onnx.load(folded)
    for index in reversed(range(len(model.opset_import))):
        if model.opset_import[index].domain:
            del model.opset_import[index]  # it lists every set that ONNX Runtime knows
    onnx.save(model, path)


def _label(path: Path, metadata: dict[str, Any]) -> None:
    """Adds our metadata to an ONNX file, and the number of columns, which the exporter does not know."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    for output in model.graph.output:
        if output.name in OUTPUTS:
            output.type.tensor_type.shape.dim[1].dim_value = DETECTION_COLUMNS
    onnx.save(model, path)


def _example(shape: Sequence[int], stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random images and vocabularies of one of the shapes above; each shape has its own seed."""
    batch, height, width, n_original, n_prompts, n_learned, n_learned_prompts = shape
    generator = torch.Generator().manual_seed(sum(shape))
    images = torch.rand(batch, 3, height * stride, width * stride, generator=generator)
    original = F.normalize(torch.randn(n_original, n_prompts, 512, generator=generator), dim=-1)
    learned = F.normalize(torch.randn(n_learned, n_learned_prompts, 512, generator=generator), dim=-1)
    return images, original, learned


def _thresholds() -> tuple[Tensor, Tensor, Tensor]:
    """The inputs iou, original_conf and learned_conf of the examples."""
    return torch.tensor([0.7]), torch.tensor([1e-3]), torch.tensor([1e-2])


def _check_shape(session: Any, reference: DetectorGraph, exact: DetectorGraph, shape: Sequence[int]) -> None:
    """Compares a forward pass in ONNX Runtime with torch; `exact` is `reference` in float64."""
    example, thresholds = _example(shape, max(reference.world.strides)), _thresholds()
    if isinstance(reference, SlotGraph):
        example[2][len(example[2]) // 2 :] = 0  # unused
    taken = {entry.name for entry in session.get_inputs()}
    given = zip(INPUTS, (*example, *thresholds), strict=True)
    feed = {name: tensor.numpy() for name, tensor in given if name in taken}
    on_input = f"on input {tuple(example[0].shape)}"
    try:
        arrays = session.run(None, feed)
    except Exception as error:  # the classes of ONNX Runtime's errors share no base but Exception
        raise GraphError(f"The exported graph fails {on_input} ({error!r:.200}).") from error
    *detections, boxes, original, learned = (torch.from_numpy(array) for array in arrays)
    with torch.no_grad():
        rounded, wanted = reference.raw(*example), exact.raw(*(tensor.double() for tensor in example))
    side = max(example[0].shape[2:])
    names, units = ("boxes", "original scores", "learned scores"), (side, 1, 1)
    for name, unit, got, near, true in zip(names, units, (boxes, original, learned), rounded, wanted, strict=True):
        if got.shape != true.shape or not _agree(got / unit, near / unit, true / unit):
            raise GraphError(f"The exported graph's {name} differ from torch's {on_input}.")
    iou, *confs = thresholds
    tables = zip(detections, (original, learned), confs, OUTPUTS, strict=True) if detections else ()
    for rows, scores, conf, name in tables:
        if not torch.equal(rows, _detections(boxes, scores, iou, conf)):
            raise GraphError(f"The exported graph's {name} differ from torch's {on_input}.")


def _agree(got: Tensor, near: Tensor, true: Tensor) -> bool:
    """Whether `got` is close to `true` (float64), given how close `near` (torch's own precision) is. NaN is not."""
    if not true.numel():
        return True
    allowed = ATOL + RTOL * true.abs() + FLOAT32_ERRORS * (near - true).abs().max()
    return bool(((got - true).abs() <= allowed).all())
