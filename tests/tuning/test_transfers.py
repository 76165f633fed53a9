"""Copies beside the computation of a GPU. Here, on the CPU, nothing is copied and nothing waits."""

import torch

from prompt_tune.tuning.transfers import Uploads, beside, mark

CPU = torch.device("cpu")


def test_nothing_is_copied_on_the_cpu() -> None:
    part = torch.arange(6)
    copied = Uploads(CPU).copy(part)
    assert copied.data_ptr() == part.data_ptr()


def test_results_are_used_at_once_on_the_cpu() -> None:
    done = mark(CPU)
    assert done is None
    with beside(done, torch.ones(2)) as nothing:
        assert nothing is None
    if torch.cuda.is_available():  # a test machine with a GPU tries the real thing
        device = torch.device("cuda")
        host = torch.arange(1000.0)
        product = Uploads(device).copy(host) * 2
        done = mark(device)
        with beside(done, product):
            torch.testing.assert_close(product.cpu(), host * 2)
