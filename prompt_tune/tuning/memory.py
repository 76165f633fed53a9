"""Cached tensors that many steps use: in memory up to a limit, and beyond it in one memory-mapped file."""

import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from prompt_tune.errors import RunError

LIMIT_BYTES = 2**30  # what a run keeps in memory of its training images, and as much again of its validation images


class Store:
    """Tensors of one type, appended one by one."""

    def __init__(self, folder: Path, dtype: torch.dtype, limit: int = LIMIT_BYTES) -> None:
        """Start empty.

        Args:
            folder: Where the file goes if there is more than the limit. It has no name, so nothing of it stays.
            dtype: What the tensors are kept as.
            limit: Bytes.
        """
        self._folder, self._dtype, self._left = folder, dtype, limit
        self._parts: list[Tensor | tuple[int, torch.Size]] = []  # those in the file by their first number and shape
        self._file: IO[bytes] | None = None
        self._n_in_file = 0
        self._mapped: Tensor | None = None

    def append(self, part: Tensor) -> None:
        """Keep a tensor.

        Raises:
            RunError: The file cannot be written.
        """
        part = part.detach().to(self._dtype).contiguous()
        size = part.numel() * part.element_size()
        if size <= self._left and self._file is None:
            self._left -= size
            self._parts.append(part)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  (as long as the store)
            self._file.write(part.numpy().tobytes())
        except OSError as error:
            raise RunError(
                f"The region cache {self._folder} cannot be written: {error.strerror}. Make room, or give another "
                "--cache."
            ) from error
        self._parts.append((self._n_in_file, part.shape))
        self._n_in_file += part.numel()
        self._mapped = None

    def __getitem__(self, place: int) -> Tensor:
        """The tensor that was kept at a place."""
        part = self._parts[place]
        if isinstance(part, Tensor):
            return part
        first, shape = part
        if self._mapped is None:
            self._mapped = self._map()
        return self._mapped[first : first + shape.numel()].view(shape)

    def _map(self) -> Tensor:
        """All numbers in the file."""
        if self._file is None or not self._n_in_file:
            return torch.zeros(0, dtype=self._dtype)
        self._file.flush()
        kind = torch.zeros(0, dtype=self._dtype).numpy().dtype
        return torch.from_numpy(np.memmap(self._file, kind, "r+", shape=(self._n_in_file,)))  # torch wants it writable
