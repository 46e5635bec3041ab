"""Encoded images on disk, so that a second run over the same images needs no vision encoder."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

DEFAULT_BYTES = 2 << 30


class EmbeddingCache:
    """A folder of image embeddings.

    Args:
        folder: made if it is missing; several processes may share it.
        max_bytes: that all entries may take together; the oldest go first.
        encoder: what made the embeddings and how; entries of others are not seen.
    """

    def __init__(
        self, folder: str | os.PathLike[str], max_bytes: int = DEFAULT_BYTES, *, encoder: str = ""
    ) -> None:
        raise NotImplementedError

    def get(self, sha256: str) -> NDArray[np.float32] | None:
        """The embeddings of an image, [n_image_tokens, n_embd_inp]; None if they are not there."""
        raise NotImplementedError

    def put(self, sha256: str, embd: NDArray[np.float32]) -> None:
        """Keeps them, if the disk lets it."""
        raise NotImplementedError
