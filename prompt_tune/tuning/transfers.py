"""Copies to and from a GPU beside its computation; on the CPU nothing is copied."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Uploads:
    """Copies to a device. On a GPU they have a stream of their own, so that they run while it computes.

    Attributes:
        device: Where the copies go.
        stream: In which they run; None on the CPU.

    Source: CUDA C++ programming guide, "Overlap of Data Transfer and Kernel Execution": both need pinned memory and
    different streams.
    """

    device: torch.device
    stream: "torch.cuda.Stream | None" = field(init=False)

    def __post_init__(self) -> None:
        """Make the stream."""
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        object.__setattr__(self, "stream", stream)

    def copy(self, part: Tensor) -> Tensor:
        """A tensor of the host on the device. What the caller computes next waits for it; what runs already does not.

        Args:
            part: Any shape and dtype, on the CPU.
        """
        if self.stream is None:
            return part.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            copied = part.pin_memory().to(self.device, non_blocking=True)
        computing.wait_stream(self.stream)
        copied.record_stream(computing)  # its memory is not given away before the computation is done with it
        return copied


def mark(device: torch.device) -> "torch.cuda.Event | None":
    """A mark behind everything that the calling thread has asked a GPU to compute; None on the CPU."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


@contextmanager
def beside(done: "torch.cuda.Event | None", *used: Tensor) -> Iterator[None]:
    """Let the calling thread use results as soon as they are there, and not after all that was asked for since.

    Args:
        done: From `mark`, behind the computation of the results.
        used: The results, on the device.
    """
    if done is None:
        yield
        return
    stream = torch.cuda.Stream(used[0].device)
    with torch.cuda.stream(stream):
        stream.wait_event(done)
        for part in used:
            part.record_stream(stream)
        yield
