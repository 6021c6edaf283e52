"""The shares of several corpora in a cache, as text.

In: the figures of a corpus, as ``corpus_figures`` gives them. Out: a phrase.
"""

from collections.abc import Mapping
from typing import Any


def shares_text(found: Mapping[str, Any]) -> str:
    """``41.2% of the tokens (asked 40.0%): 1,024 train, 96 validation``."""
    tokens = found["tokens"]
    return (
        f"{found['share']:.1%} of the tokens (asked {found['asked_share']:.1%}): "
        f"{tokens['train']:,} train, {tokens['validation']:,} validation"
    )
