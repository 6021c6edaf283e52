"""Which special tokens of a rendered conversation are the template's, and which are only spelled.

A message may well spell ``<|im_end|>``. Once it is rendered, nothing tells it from the one that the
template writes. So before that, every text of a message gets a mark within each special token that
it spells. A mark is a code point that Unicode reserves for a program's own use; it changes nothing
else for a template, which may look for ``</think>`` in a content, strip it or split it. What spells
a special token in the rendered text has no mark if it is the template's: those become *aliases*,
added tokens of the tokenizer's copy (``conversation_tokenizer``). Then the marks are removed.

A text may also end with the beginning of a special token, which what follows would complete: that
is marked too.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

MARK, _OPEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
RESERVED = re.compile(f"[{MARK}{_OPEN}{_CLOSE}]")
"""Code points that no conversation may have."""

Span = tuple[int, int]
"""Characters from the first number up to the second."""


def alias_of(control_id: int) -> str:
    """What the copy's tokenizer calls the special token with that id."""
    return f"{_OPEN}{control_id}{_CLOSE}"


class ControlText:
    """The special tokens of a tokenizer, by their text."""

    def __init__(self, ids: dict[str, int]) -> None:
        self._ids = ids
        self._begins = re.compile("|".join(map(_begins_with, _by_first(ids).items())) or "(?!)")
        self._control = re.compile(rf"({_one_of(ids)})(?!{MARK})|{MARK}")

    def marked(self, value: Any) -> Any:
        """``value``, of JSON's types, with a mark in every special token that it spells."""
        if isinstance(value, str):
            return self._begins.sub(rf"\g<0>{MARK}", value)
        if isinstance(value, dict):
            return {self._marked_key(key): self.marked(inner) for key, inner in value.items()}
        return [self.marked(inner) for inner in value] if isinstance(value, list) else value

    def _marked_key(self, key: str) -> str:
        """Keys of identifiers are what a template looks for."""
        return key if key.isidentifier() else self._begins.sub(rf"\g<0>{MARK}", key)

    def with_aliases(self, rendered: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
        """``rendered`` with aliases and without marks, and where ``spans`` of it are then."""
        parts: list[str] = []
        begins, shifts = [0], [0]  # from a place in ``rendered`` on, how far all of it is moved
        done = length = 0
        for found in self._control.finditer(rendered):
            text = rendered[done : found.start()]
            put = "" if found[1] is None else alias_of(self._ids[found[1]])
            parts += [text, put]
            length += len(text) + len(put)
            done = found.end()
            begins.append(done)
            shifts.append(length - done)
        parts.append(rendered[done:])

        def moved(place: int) -> int:
            return place + shifts[bisect_right(begins, place) - 1]

        return "".join(parts), [(moved(begin), moved(end)) for begin, end in spans]

    def without_blanks_after(self, rendered: str, span: Span) -> Span:
        """``span`` up to its last special token, if only white space comes after that in it.

        The line feed between two messages is the template's; no model is asked for it.
        """
        begin, end = span
        ends = (found.end() for found in self._control.finditer(rendered, begin, end))
        last = max(ends, default=end)
        return (begin, last) if not rendered[last:end].strip() else span


def _by_first(names: Iterable[str]) -> dict[str, list[str]]:
    """What follows the first character of each name, by that character."""
    rests: dict[str, list[str]] = {}
    for name in sorted(names):
        rests.setdefault(name[0], []).append(name[1:])
    return rests


def _begins_with(item: tuple[str, list[str]]) -> str:
    """A pattern of a first character that one of ``rests`` follows, or the beginning of one and
    then nothing. To look for a few characters is what a regular expression does fast."""
    first, rests = item
    beginnings = {rest[:length] for rest in rests for length in range(len(rest))}
    return rf"{re.escape(first)}(?={_one_of(rests)}|(?:{_one_of(beginnings)})\s*\Z)"


def _one_of(names: Iterable[str]) -> str:
    """A pattern of all ``names``, the longest first; one that matches nothing if there are none."""
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    return "|".join(map(re.escape, longest_first)) if longest_first else "(?!)"
