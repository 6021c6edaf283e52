"""Where a cache lies, as the command line takes it: a directory, or a URL such as s3://…

Called by every command that reads or writes a cache.
"""

from pathlib import Path
from typing import Any

import click


class CacheLocation(click.Path):
    """A directory as a ``Path``; a URL as the text it is, looked for only when it is opened."""

    name = "directory or URL"

    def __init__(self, *, exists: bool) -> None:
        super().__init__(exists=exists, file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A ``Path`` or a URL."""
        from cache_format.storage import is_url

        return value if is_url(value) else super().convert(value, param, ctx)
