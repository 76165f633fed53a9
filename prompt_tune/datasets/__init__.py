"""Labelled images: how every format is read, and the sample set that the project draws itself."""

from prompt_tune.datasets.reading import read_dataset, read_split

__all__ = ["read_dataset", "read_split"]
