"""What a diagnosis is made of, and its text.

In: sections of named facts, and problems with what to do about them. Out: text that can be pasted
into a report of a bug, or JSON.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Section:
    """Facts by name, in the order in which they are shown."""

    title: str
    facts: dict[str, str]


@dataclass(frozen=True)
class Diagnosis:
    """All that was found."""

    sections: list[Section]
    problems: list[str]
    """Sentences: what is wrong and what to do."""


def diagnosis_json(found: Diagnosis) -> dict[str, Any]:
    """Facts by section and name, and ``problems``."""
    facts = {section.title.lower().replace(" ", "_"): section.facts for section in found.sections}
    return {**facts, "problems": found.problems}


def diagnosis_text(found: Diagnosis) -> str:
    """Sections one below the other, the problems last."""
    width = max(len(name) for section in found.sections for name in section.facts)
    return "\n".join(_lines(found, width))


def _lines(found: Diagnosis, width: int) -> Iterator[str]:
    for section in found.sections:
        yield section.title
        for name, fact in section.facts.items():
            yield f"  {name:{width}}  {fact}"
        yield ""
    yield "Problems"
    yield from (f"  - {problem}" for problem in found.problems or ["none found"])
