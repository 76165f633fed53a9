"""Which cached regions count as an object, and how much: task-aligned assignment (TOOD, arXiv 2108.07755).

Boxes are frozen. So the regions that an object may take, and how well they overlap it, are found once (`Candidates`),
and a training step only compares scores. The result is that of ultralytics' `TaskAlignedAssigner`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prompt_tune.models import ultralytics
from prompt_tune.tuning.regions import Regions

TOPK, ALPHA, BETA, EPS = 10, 0.5, 6.0, 1e-9  # as ultralytics trains YOLO-World


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs of an object and a region that it may take, of one image or of a batch.

    Attributes:
        rows: (m,) int64, the region of each pair.
        objects: (m,) int64, rising, its object.
        classes: (m,) int64, the class of the object.
        overlaps: (m,) float32 above 0, the overlap of their boxes (CIoU).
        powers: (m,) float32, the overlaps to the power of `BETA`.
        best: (m,) bool, whether no other object overlaps the region more.
        counts: (n,) int64, the number of pairs of each object; 0 for an object without one.
        ignored: (k, 2) int64, regions in ignored boxes and the classes of those boxes, each pair once.
        labelled: int64, rising, the classes that have a box, ignored or not.
    """

    rows: Tensor
    objects: Tensor
    classes: Tensor
    overlaps: Tensor
    powers: Tensor
    best: Tensor
    counts: Tensor
    ignored: Tensor
    labelled: Tensor


def find_candidates(regions: Regions, points: Tensor, strides: Sequence[int]) -> Candidates:
    """The candidates of one image: regions with their anchor point in the box of an object.

    As in ultralytics, boxes narrower than the second stride are widened to it. Pairs without overlap are left out,
    for they cannot become targets.

    Args:
        regions: The image.
        points: (A, 2) anchor points in pixels of the network's input, on the CPU.
        strides: Pixels of the network's input per cell of each level.
    """
    tal = ultralytics.quiet_import("ultralytics.utils.tal")
    assigner = tal.TaskAlignedAssigner(topk=TOPK, alpha=ALPHA, beta=BETA, stride=list(strides))
    at, labels = points[regions.anchor], regions.labels
    ignore, classes = torch.from_numpy(labels.ignore), torch.from_numpy(labels.classes).long()  # (n,), (n,)
    boxes = torch.from_numpy(labels.boxes_xyxy).float()  # (n, 4)
    inside = assigner.select_candidates_in_gts(at, boxes[None], torch.ones(1, len(boxes), 1))[0]  # (n, r)
    objects, rows = (inside & ~ignore[:, None]).nonzero().unbind(1)  # (m,), (m,)
    overlaps = assigner.iou_calculation(boxes[objects], regions.boxes_xyxy[rows])  # (m,)
    there = overlaps > 0
    powers = overlaps.pow(BETA)[there]  # here, not in a batch: its last bit depends on the place in a tensor
    objects, rows, overlaps = objects[there], rows[there], overlaps[there]
    most = torch.zeros(len(at)).scatter_reduce(0, rows, overlaps, "amax")  # (r,)
    tied = overlaps == most[rows]  # the first of several objects with the same overlap is the best
    first = torch.full((len(at),), len(boxes)).scatter_reduce(0, rows[tied], objects[tied], "amin")  # (r,)
    ignored = [torch.zeros(0, 2, dtype=torch.long)]
    for k in ignore.nonzero().flatten().tolist():
        within = ((at > boxes[k, :2]) & (at < boxes[k, 2:])).all(1).nonzero()  # (k, 1)
        ignored.append(torch.cat([within, classes[k].expand(len(within), 1)], 1))
    return Candidates(
        rows=rows,
        objects=objects,
        classes=classes[objects],
        overlaps=overlaps,
        powers=powers,
        best=tied & (first[rows] == objects),
        counts=torch.bincount(objects, minlength=len(boxes)),
        ignored=torch.cat(ignored).unique(dim=0),
        labelled=classes.unique(),
    )


def join(parts: Sequence[Candidates], places: Sequence[Tensor], device: torch.device) -> Candidates:
    """The candidates of a batch.

    Args:
        parts: Those of each image.
        places: (r,) int64 for each image, where its regions stand in the batch.
        device: Where the result is to be.
    """
    first, objects = 0, []
    for part in parts:
        objects.append(part.objects + first)
        first += len(part.counts)
    ignored = [
        torch.stack([place[part.ignored[:, 0]], part.ignored[:, 1]], 1)
        for part, place in zip(parts, places, strict=True)
        if len(part.ignored)
    ]
    return Candidates(
        rows=torch.cat([place[part.rows] for part, place in zip(parts, places, strict=True)]).to(device),
        objects=torch.cat(objects).to(device),
        classes=torch.cat([part.classes for part in parts]).to(device),
        overlaps=torch.cat([part.overlaps for part in parts]).to(device),
        powers=torch.cat([part.powers for part in parts]).to(device),
        best=torch.cat([part.best for part in parts]).to(device),
        counts=torch.cat([part.counts for part in parts]).to(device),
        ignored=torch.cat(ignored).to(device) if ignored else parts[0].ignored[:0].to(device),
        labelled=torch.cat([part.labelled for part in parts]).unique().to(device),
    )


@torch.no_grad()
def targets(candidates: Candidates, scores: Tensor, n_regions: int) -> Tensor:
    """The soft target of each pair: how much the region counts as the class of the object.

    An object takes the `TOPK` regions with the best product of score and overlap. A region that several objects take
    goes to the one that overlaps it most.

    Args:
        candidates: The pairs.
        scores: (m,) float32 in 0..1, the present score of each pair's region for its object's class.
        n_regions: The number of regions.

    Returns:
        (m,) float32 in 0..1; 0 for pairs that are not taken. No region has two.
    """
    rows, objects, counts, overlaps = candidates.rows, candidates.objects, candidates.counts, candidates.overlaps
    if not len(rows):
        return overlaps
    aligned = scores.pow(ALPHA) * candidates.powers  # (m,)
    pair = torch.arange(len(rows), device=rows.device)
    start = counts.cumsum(0) - counts  # (n,)
    table = aligned.new_full((len(counts), int(counts.max())), -1.0)  # (n, widest)
    table[objects, pair - start[objects]] = aligned
    top = table.topk(min(TOPK, table.shape[1]), dim=1)  # (n, k)
    taken = torch.zeros_like(candidates.best)
    taken[(start[:, None] + top.indices)[top.values > 0]] = True
    takers = torch.zeros(n_regions, dtype=torch.long, device=rows.device).index_add_(0, rows, taken.long())
    taken = torch.where(takers[rows] > 1, candidates.best, taken)
    aligned, overlaps = aligned * taken, overlaps * taken
    nothing = aligned.new_zeros(len(counts))
    most_aligned = nothing.scatter_reduce(0, objects, aligned, "amax")  # (n,)
    most_overlap = nothing.scatter_reduce(0, objects, overlaps, "amax")  # (n,)
    return aligned * most_overlap[objects] / (most_aligned[objects] + EPS)
