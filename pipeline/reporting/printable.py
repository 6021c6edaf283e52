"""Text from caches and models, as it may be shown on a terminal, which obeys control characters."""

_LAYOUT = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # another order
    "\u2028\u2029"  # another line
)
"""Characters that change where a terminal or an editor shows those around them."""


def printable(text: str, *, keep: str = "\n\t") -> str:
    """``text`` with control characters as Python escapes them, other than those in ``keep``.

    What is escaped already stays as it is.
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character not in keep and is_control(character)
        else character
        for character in text
    )


def is_control(character: str) -> bool:
    """Whether a terminal obeys ``character`` instead of showing it."""
    return ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 or character in _LAYOUT
