"""The README's Python runs, and its constants are the program's."""

import pytest

from cache_format.codec import columns, entries, samples
from cache_format.metadata import layout, sealed_json
from cache_format.shard import SKETCH_COLUMNS
from tests.support import ROOT
from tests.support.golden_cache import GOLDEN

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
        f"(c − log p) · {samples.STEPS_PER_NAT}",
        str(int(columns.MIN_LOGPROB)).replace("-", "−"),
        "The last four have {}, {}, {} and {} raw bits".format(*entries.ESCAPES),
        ", ".join(f"`{name}`" for name in SKETCH_COLUMNS),
    ],
)
def test_the_format_readme_names_every_file_and_field(text: str) -> None:
    assert text in README


def test_the_seal_is_as_the_format_readme_describes_it() -> None:
    ending = README.partition(',↵ "seal"')[2].partition("\n")[0]
    template = (',↵ "seal"' + ending).replace("↵", "\n")
    data = sealed_json.seal({"format_version": "1.0"}).decode()
    digest = data[-68:-4]
    assert data.endswith(template.replace("H", digest))
