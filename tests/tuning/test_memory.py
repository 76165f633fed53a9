"""Tensors in memory and in the packed file are the same."""

from pathlib import Path

import pytest
import torch

from prompt_tune.tuning.memory import Store


@pytest.mark.parametrize("limit", [0, 100, 10_000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_store_gives_back_what_it_was_given_wherever_it_is(limit: int, dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 3, generator=generator).to(dtype) for n in (4, 0, 9, 1, 20)]
    store = Store(tmp_path, dtype, limit)
    for k, part in enumerate(parts):
        store.append(part)
        assert torch.equal(store[k], part)  # reading between appends
    assert all(torch.equal(store[k], part) and store[k].dtype == dtype for k, part in enumerate(parts))
    assert not list(tmp_path.iterdir())  # the file has no name
    assert (store._file is not None) == (limit < 10_000)
