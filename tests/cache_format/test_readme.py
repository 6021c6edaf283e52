"""The README's Python runs, and its constants are the program's."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest

import cache_format
from cache_format.codec import columns, entries, samples
from cache_format.coding import rans
from cache_format.coding.coefficients import MAX_LIMIT, MAX_VALUE
from cache_format.metadata import layout, sealed_json
from cache_format.metadata.spec_parts.targets import KL_TEMPERATURES, Kind
from cache_format.shard import SKETCH_COLUMNS
from cache_format.tables.hidden_transform import transform_num_bytes
from cache_format.tables.tail_moment import moment_num_bytes
from tests.support import ROOT
from tests.support.golden_cache import GOLDEN, SPECS

README = (ROOT / "cache_format/README.md").read_text(encoding="utf-8")


def test_the_python_example_of_the_format_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = README.partition("```python\n")[2].partition("```")[0]
    assert code.count("path/to/cache") == 1
    exec(compile(code.replace("path/to/cache", str(GOLDEN / "top_k")), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("1 rows of 6 positions\nafter [3] come [ 3 16 29 42] with [5.85")


def test_the_format_readme_has_the_current_format_version() -> None:
    assert README.startswith(f"# The cache format, version {sealed_json.FORMAT_VERSION}\n")


@pytest.mark.parametrize(
    "text",
    [
        layout.MANIFEST,
        layout.SPEC,
        layout.TEACHER_RECEIPT,
        layout.RANKS,
        layout.PROJECTION,
        layout.TRANSFORM,
        layout.MOMENT,
        f"−{MAX_VALUE} … {MAX_VALUE}",
        f"Limits are from 1 to {MAX_LIMIT}",
        f"min(P, {rans.MAX_LANES}) *lanes*",
        f"S × {rans.NUM_SYMBOLS} uint16",
        "temperatures 1, 1.5 and 2",
        *(f'`"{kind}"`' for kind in get_args(Kind)),
        f"(c − log p) · {samples.STEPS_PER_NAT}",
        str(int(columns.MIN_LOGPROB)).replace("-", "−"),
        "The last four have {}, {}, {} and {} raw bits".format(*entries.ESCAPES),
        ", ".join(f"`{name}`" for name in SKETCH_COLUMNS),
    ],
)
def test_the_format_readme_names_every_file_and_field(text: str) -> None:
    assert text in README


@pytest.mark.parametrize("name", SPECS)
def test_the_format_readme_names_every_column_and_field_of_the_golden_caches(name: str) -> None:
    """What is not in one table row of its own is in that of its neighbours, as ``.revision`` is."""
    for field in _leaves(SPECS[name].to_json()):
        assert f"`{field}`" in README or f"`.{field.rpartition('.')[2]}`" in README, field
    for entry in cache_format.open(GOLDEN / name).manifest.shards:
        for column in entry.statistics.column_bytes:
            assert f"| `{column}` |" in README
        for total in entry.statistics.sums:
            assert f"`{total}`" in README


def _leaves(fields: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in fields.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_what_the_format_readme_says_of_the_code_of_coefficients_is_so() -> None:
    assert rans.TOTAL == 2**14
    assert KL_TEMPERATURES == (1.0, 1.5, 2.0)
    hidden = SPECS["hidden"]
    D, J, S, Q = 6, 6, 3, 2
    assert transform_num_bytes(hidden) == 4 * D * (1 + 2 * J) + J + 512 * (1 + Q * S)
    d, n, D, Q = 2, 2, 4, 1
    size = 4 * (d * D + d + 1) + 4 * n * (d + 1) * (1 + 2 * J) + J + 512 * (1 + Q * S)
    assert moment_num_bytes(SPECS["tail_moment"]) == size


def test_the_seal_is_as_the_format_readme_describes_it() -> None:
    ending = README.partition(',↵ "seal"')[2].partition("\n")[0]
    template = (',↵ "seal"' + ending).replace("↵", "\n")
    data = sealed_json.seal({"format_version": "2.0"}).decode()
    digest = data[-68:-4]
    assert data.endswith(template.replace("H", digest))
