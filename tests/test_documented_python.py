"""The Python of the README and of the cache format's description runs as it is written."""

import re
from pathlib import Path

import pytest

from tests.support import ROOT

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("page", "path", "expected"),
    [
        ("README.md", "fineweb-cache", r"\A\d+ \[.*\] \[.*\] \["),
        (
            "cache_format/README.md",
            "path/to/cache",
            r"\d+ positions\nafter .* come .* with",
        ),
    ],
)
def test_reading_a_cache(
    page: str, path: str, expected: str, tiny_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = _BLOCK.findall((ROOT / page).read_text("utf-8"))
    assert block.count(f'"{path}"') == 1
    exec(block.replace(f'"{path}"', repr(str(tiny_cache))), {})
    assert re.search(expected, capsys.readouterr().out, re.DOTALL)
