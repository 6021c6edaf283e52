"""A page as its parts, without a browser: what is open, what it names, what it shows."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "link", "img", "br", "hr", "input"}
_NAMING = {"src", "href", "xlink:href", "action", "srcset", "poster", "data", "formaction"}


@dataclass
class PageParts:
    """What a parser finds."""

    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    """Tag, attribute, value."""
    text: list[str] = field(default_factory=list)
    """Of everything but style and script, piece by piece."""
    code: dict[str, list[str]] = field(default_factory=lambda: {"style": [], "script": []})
    tables_outside: int = 0
    """Tables that are in no element that scrolls."""

    @property
    def shown(self) -> str:
        """All text."""
        return "\n".join(self.text)

    @property
    def addresses(self) -> list[str]:
        """What the page would fetch or lead to."""
        return [value for _, name, value in self.attributes if name in _NAMING]

    @property
    def handlers(self) -> list[str]:
        """Attributes that are code."""
        return [name for _, name, _ in self.attributes if name.startswith("on")]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts = PageParts()
        self.open: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.parts.tags.append(tag)
        self.parts.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table" and not any("scroll" in classes for _, classes in self.open):
            self.parts.tables_outside += 1
        if tag not in _VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1][0] == tag, f"</{tag}> in <{self.open[-1][0]}>, line {self.getpos()[0]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        within = self.open[-1][0] if self.open else ""
        self.parts.code.get(within, self.parts.text).append(data)


def parse(page: str) -> PageParts:
    """The parts of ``page``. Fails where an element is not closed where it has to be."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == [], f"never closed: {parser.open}"
    return parser.parts
