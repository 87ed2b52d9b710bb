"""Fewer vectors for each text: those of tokens that mean much the same become their mean.

The hierarchical pooling of sentence-transformers 6 (`HierarchicalTokenPooling`) and PyLate:
clusters by Ward's method on cosine distances (Clavié, Chaffin and Adams 2024, "Reducing the
Footprint of Multi-Vector Retrieval with Minimal Performance Impact via Token Pooling"). Pure numpy,
but for the clusters, which are scipy's.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidOption
from ..outputs import RaggedRows, unit_length

__all__ = ["TokenPooling", "require_clustering"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TokenPooling:
    """How the vectors of a text are pooled."""

    factor: float
    """One vector stays for N; 1 pools none."""
    protected: int = 1
    """Leading vectors, such as that of `[CLS]`, that are left out of it."""
    normalize: bool = True
    """Whether all vectors of the result are scaled to unit length."""

    def __call__(self, rows: RaggedRows) -> RaggedRows:
        """The vectors of texts, pooled text by text."""
        if self.factor > 1:
            rows = RaggedRows.of([self.pooled(each) for each in rows], rows.width)
        return RaggedRows(unit_length(rows.values), rows.offsets) if self.normalize else rows

    def pooled(self, vectors: FloatArray) -> FloatArray:
        """Of one text, `[tokens, dimension]`, not scaled. What is not finite stays as it is."""
        first, rest = vectors[: self.protected], vectors[self.protected :]
        wanted = max(int(len(rest) // self.factor), 1)
        if wanted >= len(rest) or not np.isfinite(vectors).all():
            return vectors
        return np.concatenate((first, _means(rest, _clusters(rest, wanted))))


def require_clustering() -> Any:
    """scipy's clusters. Raises `InvalidOption` where it is not installed."""
    try:
        return importlib.import_module("scipy.cluster.hierarchy")
    except ImportError:
        raise InvalidOption(
            "token pooling finds clusters by scipy, which is not installed: "
            "pip install 'millpond[multi-vector]'"
        ) from None


def _clusters(rows: FloatArray, wanted: int) -> npt.NDArray[np.int64]:
    """The cluster of each row, from 0; of at most `wanted`."""
    hierarchy = require_clustering()
    distances = np.clip(1 - rows @ rows.T, 0, 2)
    condensed = distances[np.triu_indices(len(rows), k=1)]
    labels = hierarchy.fcluster(
        hierarchy.linkage(condensed, method="ward"), t=wanted, criterion="maxclust"
    )
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _means(rows: FloatArray, clusters: npt.NDArray[np.int64]) -> FloatArray:
    counts = np.bincount(clusters)
    sums = np.zeros((len(counts), rows.shape[1]), dtype=np.float32)
    np.add.at(sums, clusters, rows)
    means: FloatArray = (sums / counts[:, None]).astype(np.float32)
    return means
