"""Chunks of tokenised texts: those of several calls, made together, are those made one by one."""

from __future__ import annotations

import numpy as np

from millpond.scheduler.token_chunk import TokenChunk


def test_chunks_of_single_texts_are_what_each_alone_would_be() -> None:
    texts = [[7, 8, 9], [1], [], [7, 8, 9], [2, 3]]
    rows = [np.array([row]) for row in (4, 0, 0, 2, 1)]
    ids = np.array([i for text in texts for i in text], dtype=np.int32)
    lengths = np.array([len(text) for text in texts], dtype=np.int32)
    together = TokenChunk.of_single_texts(rows, ids, lengths, 0.5)
    for row, text, chunk in zip(rows, texts, together, strict=True):
        alone = TokenChunk.build(row, np.array(text, np.int32), np.array([len(text)]), 0.5)
        for name in ("rows", "lengths", "offsets", "ids", "digests"):
            found, expected = getattr(chunk, name), getattr(alone, name)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
        assert chunk.ids_of(0).tolist() == text
    assert together[0].digests == together[3].digests != together[1].digests


def test_a_text_has_the_same_digest_alone_and_among_others() -> None:
    ids = np.array([5, 6, 7, 1], dtype=np.int32)
    (alone,) = TokenChunk.of_single_texts([np.array([0])], ids[:3], np.array([3]))
    several = TokenChunk.build(np.arange(2), ids, np.array([3, 1]))
    assert several.digests[0] == alone.digests[0]
