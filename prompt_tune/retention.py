"""Retention, counted: how many bits of the original detections change when learned vocabularies are loaded."""

import numpy as np


def changed_bits(before: np.ndarray, after: np.ndarray) -> int:
    """Bits that differ between two tables of original detections, order included.

    Args:    before, after: (n, 7) and (m, 7) float32, rows of the graph's `original_detections`.
    Returns: 0 only when they are the same byte for byte. A row that one table lacks counts with all its bits.
    """
    common = min(len(before), len(after))
    first, second = (np.ascontiguousarray(table[:common]).view(np.uint8) for table in (before, after))
    differing = int(np.unpackbits(first ^ second).sum())
    surplus = (before[common:], after[common:])
    return differing + sum(8 * table.nbytes for table in surplus)
