"""How much of a cache is scored, and what became of its conversations, in words."""

from collections.abc import Mapping

_OUTCOMES = {
    "num_split": "split at their messages to fit in rows",
    "num_incomplete": "of these without an exchange that does not fit in a row",
    "num_too_long": "left out because they do not fit in a row",
    "num_unscored": "left out because none of their positions is scored",
}


def scored_text(num_scored: int, num_tokens: int) -> str:
    """``1,234 scored positions (61.7%)``."""
    return f"{num_scored:,} scored positions ({num_scored / max(1, num_tokens):.1%})"


def conversations_text(counts: Mapping[str, int]) -> str:
    """What became of the conversations that are not in the rows as they are; empty if all are.

    ``counts`` has the fields of ``ConversationCounts``.
    """
    return "; ".join(f"{counts[name]:,} {text}" for name, text in _OUTCOMES.items() if counts[name])
