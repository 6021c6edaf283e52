"""Which tokens the table of ranks counts, where there are several corpora."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stages.cache_teacher.corpus.token_frequencies import ENOUGH_TOKENS
from stages.cache_teacher.setup import identity


def test_a_long_document_leaves_the_other_corpora_their_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[Any] = []
    monkeypatch.setattr(identity, "rank_table", lambda documents, _: counted.extend(documents))
    monkeypatch.setattr(
        identity, "iter_token_ids", lambda corpus, _: iter([np.full(2 * ENOUGH_TOKENS, corpus)])
    )
    corpora: Any = SimpleNamespace(each={"a": 1, "b": 2}, weights=(0.75, 0.25), is_mixed=True)
    source: Any = SimpleNamespace(spec=SimpleNamespace(vocab_size=4))
    identity.ranks_of(corpora, source)
    numbers = np.bincount(np.concatenate(counted)).tolist()
    assert numbers == [0, ENOUGH_TOKENS * 3 // 4, ENOUGH_TOKENS // 4]
