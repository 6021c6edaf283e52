"""Puts results into the pages: tables between markers, and figures of texts compared with files.

What lies between ``<!-- results:NAME -->`` and ``<!-- end -->`` in a page is made of the file NAME.
Keys after the name choose columns. Between ``<!-- figures:NAME NAME -->`` and ``<!-- end -->`` the
text is anyone's, but every number in it must be one of these files, rounded to the digits shown.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from benchmarks.result_files import DIRECTORY, NUMBER, Result, block, is_of, load_result, numbers

_ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/results.md")
COMMAND = "python -m benchmarks results"
_TABLE = re.compile(r"(<!-- results:(\S+)((?: \w+)*) -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)
_TEXT = re.compile(r"<!-- figures:([^>]+?) -->(.*?)<!-- end -->", re.DOTALL)
_MARKER = re.compile(r"<!-- (\w+)[^>]*-->")
_LINK = re.compile(r"\]\([^)]*\)")

Load = Callable[[str], Result]


@click.command("results", help=__doc__)
def results() -> None:
    for name in PAGES:
        path = _ROOT / name
        text = path.read_text("utf-8")
        try:
            made = rendered(text)
            unknown = [f"{name}: {problem}" for problem in unknown_numbers(text)]
        except ValueError as error:
            raise click.ClickException(f"{name}: {error}") from error
        if made != text:
            path.write_text(made, "utf-8")
            click.echo(f"{name}: rendered from benchmarks/results/{DIRECTORY.name}")
        if unknown:
            raise click.ClickException("\n".join(unknown))


def rendered(text: str, load: Load = load_result) -> str:
    """A page's ``text`` with every table as its file has it.

    Raises ValueError naming a marker without an end, or a file or column that there is not.
    """
    kinds = _MARKER.findall(text)
    if kinds[1::2] != ["end"] * (len(kinds) // 2) or len(kinds) % 2 or "end" in kinds[::2]:
        raise ValueError(f"each marker needs an <!-- end -->; found {' '.join(kinds)}")

    def table(found: re.Match[str]) -> str:
        opening, name, keys, _ = found.groups()
        try:
            return opening + block(load(name), keys.split())
        except KeyError as error:
            raise ValueError(f"results:{name}: no column {error}") from error

    return _TABLE.sub(table, text)


def unknown_numbers(text: str, load: Load = load_result) -> Iterator[str]:
    """What is wrong with each number between markers that no file of theirs has."""
    for names, words in _TEXT.findall(text):
        found = [number for name in names.split() for number in numbers(load(name))]
        for number in NUMBER.findall(_LINK.sub("]", words)):
            if not is_of(number, found):
                yield (
                    f"{number} is none of the figures of {names}. Mend the text, or add it to "
                    '"figures" of the file with what it is.'
                )
