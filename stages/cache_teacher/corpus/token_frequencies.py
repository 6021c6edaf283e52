"""The cache's table of ids by frequency, from the beginning of the corpus.

In: token ids of documents. Out: a ``RankTable``, through which every id is stored: the smaller its
rank, the fewer bits it takes. The table is a pure function of corpus and tokenizer, so that
machines which never met make caches that fit together.

What counts is in how many places a teacher may think an id possible, not how often it occurs: a
word that only ever follows one other does not come up elsewhere. So ids are counted as Kneser and
Ney (1995) count them, by the number of different ids that come before them, here within sixteen.
Fewer are better where ids are few, occurrences where they are many; either way by less than 1 %.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from cache_format.tables.vocabulary_ranks import RankTable

ENOUGH_TOKENS = 1 << 18
"""Tokens of a corpus that are looked at before its first shard is begun; twice as many make ids
smaller by about 1 %."""
REACH = 16
"""How far before it an id is looked for."""

IntArray = npt.NDArray[np.int32]


def rank_table(documents: Iterable[IntArray], vocab_size: int) -> RankTable:
    """The table over the first documents that together have ``ENOUGH_TOKENS``, or over all."""
    counted: list[IntArray] = []
    num_tokens = 0
    for document in documents:
        counted.append(document)
        num_tokens += len(document)
        if num_tokens >= ENOUGH_TOKENS:
            break
    ids = np.concatenate([*counted, np.empty(0, np.int32)]).astype(np.int64)
    weights = np.zeros(vocab_size, np.int64)
    for distance in range(1, REACH + 1):
        pairs = np.unique(ids[:-distance] * vocab_size + ids[distance:])
        weights += np.bincount(pairs % vocab_size, minlength=vocab_size)
    return RankTable.by_weight(weights)
