"""Where a cache or a file lies, as the command line takes it: a path, or a URL such as s3://…

Called by every command that reads or writes a cache. What looks like a URL and is taken for none is
refused: as a path it would be a directory ``s3:`` wherever the command was typed.
"""

import re
from pathlib import Path
from typing import Any

import click

_LIKE_A_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")


class LocalPath(click.Path):
    """A ``Path`` of this machine, where a URL would not work."""

    def __init__(self, **options: Any) -> None:
        """``options`` are those of ``click.Path``."""
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A ``Path``."""
        if _LIKE_A_URL.match(str(value)):
            self.fail(
                f"{str(value)!r} looks like a URL: only a path of this machine can be given here. "
                "If that is one, put ./ before it.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


class CacheLocation(LocalPath):
    """A directory as a ``Path``; a URL as the text it is, looked for only when it is opened."""

    name = "directory or URL"

    def __init__(self, *, exists: bool) -> None:
        super().__init__(exists=exists, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A ``Path`` or a URL."""
        from cache_format.storage import is_url

        if is_url(value):
            return value
        match = _LIKE_A_URL.match(str(value))
        if match:
            url = f"{match[1].lower()}://{value[match.end() :]}"
            self.fail(
                f"{str(value)!r} is no URL: did you mean {url!r}? If it is a path of this machine, "
                "put ./ before it.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)
