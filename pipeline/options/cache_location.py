"""Where a cache or a file lies, as the command line takes it: a path, or a URL such as s3://…

What looks like a URL and is taken for none is refused: as a path it would be a directory ``s3:``
wherever the command was typed.
"""

import re
from pathlib import Path
from shlex import quote
from typing import Any

import click

_LIKE_A_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")


class LocalPath(click.Path):
    """A ``Path`` of this machine, where a URL would not work."""

    def __init__(self, *, expected: str = "", **options: Any) -> None:
        """``options`` are those of ``click.Path``; ``expected`` says which directory is meant."""
        super().__init__(path_type=Path, **options)
        self._expected = expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A ``Path``."""
        if _LIKE_A_URL.match(str(value)):
            self.fail(
                f"{str(value)!r} looks like a URL: only a local path can be given here. "
                "If it is a local path, put ./ before it.",
                param,
                ctx,
            )
        if self._expected and Path(str(value)).is_file():
            self.fail(f"{str(value)!r} is a file; expected {self._expected}.", param, ctx)
        return super().convert(value, param, ctx)


RUN = LocalPath(
    exists=True,
    file_okay=False,
    expected="the directory that train-student wrote with --out, or a model directory",
)


class CacheLocation(LocalPath):
    """A directory as a ``Path``; a URL as the text it is, looked for only when it is opened."""

    name = "directory or URL"

    def __init__(self, *, exists: bool) -> None:
        expected = "a directory that cache-teacher wrote" if exists else "a directory, or a new one"
        super().__init__(exists=exists, file_okay=False, expected=expected)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A ``Path`` or a URL."""
        from cache_format.storage.base import is_url

        if is_url(value):
            return value
        if str(value).endswith((".tar.zst", ".tar")) and Path(str(value)).is_file():
            self.fail(
                f"{str(value)!r} is an archive. Unpack it first: "
                f"pipeline unpack {quote(str(value))} CACHE",
                param,
                ctx,
            )
        match = _LIKE_A_URL.match(str(value))
        if match:
            url = f"{match[1].lower()}://{value[match.end() :]}"
            self.fail(
                f"{str(value)!r} is not a URL: did you mean {url!r}? If it is a local path, "
                "put ./ before it.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)
