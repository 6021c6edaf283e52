"""Text from caches and models, as it may be shown on a terminal, which obeys control characters."""


def printable(text: str, *, keep: str = "\n\t") -> str:
    """``text`` with control characters as Python escapes them, other than those in ``keep``."""
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character not in keep and (ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0)
        else character
        for character in text
    )
