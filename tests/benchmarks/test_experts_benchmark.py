"""Two experts of one origin on the demo's teacher: merged, they know both domains."""

import json
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import experts
from benchmarks.__main__ import main
from pipeline.demo.run import TEACHER


def test_a_document_is_of_the_domain_of_its_file() -> None:
    assert experts.domain_of("json/decoder.py#0") == "modules"
    assert experts.domain_of("numpy/doc.rst#12") == "pages"


@pytest.fixture
def few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docstrings and pages that are unlike each other, in place of all that are installed."""
    prose = (TEACHER / "README.md").read_text() + (textwrap.__doc__ or "")
    words = prose.split()
    found = [(f"page{n}.md#0", " ".join(words[n % 7 :])) for n in range(120)]
    numbers = (f"Return the value of register {n}, or None. Raises KeyError." for n in range(1200))
    lines = list(numbers)
    found += [(f"module{n}.py#0", "\n".join(lines[10 * n : 10 * n + 20])) for n in range(120)]
    monkeypatch.setattr(experts, "documents", lambda side: iter(found))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("few_documents")
def test_the_merge_is_better_on_each_domain_than_the_expert_of_the_other(tmp_path: Path) -> None:
    words = ["experts", "--tokens", "24000", "--steps", "12", "--expert-steps", "8"]
    words += ["--work", str(tmp_path), "--set", "train_student.validation_rows=16", "--json"]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    losses = json.loads(result.stdout)
    modules, pages = experts.DOMAINS
    for domain, foreign in ((modules, pages), (pages, modules)):
        assert losses["merged"][domain] < losses[foreign][domain]
        assert losses[domain][domain] < losses["base"][domain]
