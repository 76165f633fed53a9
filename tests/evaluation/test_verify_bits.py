"""Bits that differ between two tables of detections."""

import numpy as np
import pytest

from prompt_tune.evaluation.verify import changed_bits


def table(*scores: float) -> np.ndarray:
    return np.array([[0, 1, 2, 3, 4, score, 5] for score in scores], np.float32).reshape(-1, 7)


@pytest.mark.parametrize("rows", [(), (0.5,), (0.5, 0.25)])
def test_changed_bits_of_equal_tables_is_zero(rows: tuple[float, ...]) -> None:
    assert changed_bits(table(*rows), table(*rows)) == 0


def test_changed_bits_of_one_last_bit_is_one() -> None:
    after = table(0.5, 0.25)
    after[1, 5] = np.nextafter(np.float32(0.25), np.float32(1))
    assert changed_bits(table(0.5, 0.25), after) == 1


def test_changed_bits_counts_the_sign_of_zero() -> None:
    assert changed_bits(table(0.0), table(-0.0)) == 1


def test_changed_bits_of_another_order_is_not_zero() -> None:
    assert changed_bits(table(0.5, 0.25), table(0.25, 0.5)) > 0


def test_changed_bits_of_a_missing_row_counts_all_its_bits() -> None:
    assert changed_bits(table(0.5, 0.25), table(0.5)) == changed_bits(table(0.5), table(0.5, 0.25)) == 7 * 32
    assert changed_bits(table(), table(0.5)) == 7 * 32
