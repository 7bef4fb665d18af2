"""What the readers share."""

import numpy as np

from purevdm.training.data import Dataset


class DataError(ValueError):
    """A data file that is missing, damaged or of the wrong form; the message names it and where to get it."""


def in_memory(name: str, x: np.ndarray, vocab_size: int, labels: np.ndarray | None = None) -> Dataset:
    """A data set over an array (in memory or mapped), (n, *event_shape), uint8."""
    if labels is not None:
        labels = np.asarray(labels, dtype=np.int64)
        if labels.shape != (len(x),) or labels.min() < 0:
            raise DataError(f"{name}: expected {len(x)} labels of at least 0, got shape {labels.shape}")
    classes = 0 if labels is None else int(labels.max()) + 1
    return Dataset(name, len(x), x.shape[1:], vocab_size, lambda i: np.asarray(x[i]), labels, classes)
