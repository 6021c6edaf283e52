"""The demo's corpus: English documents of this Python, on two sides that never meet."""

from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.demo import corpus


@pytest.fixture(scope="module")
def first_documents() -> dict[corpus.Side, list[corpus.Document]]:
    sides: tuple[corpus.Side, ...] = ("teacher", "demo")
    return {side: list(islice(corpus.documents(side), 60)) for side in sides}


def test_no_module_is_in_both_training_and_validation(
    first_documents: dict[corpus.Side, list[corpus.Document]],
) -> None:
    for side, documents in first_documents.items():
        for document in documents:
            assert corpus.side_of(document.name.partition("#")[0]) == side


def test_documents_are_english_prose_of_bounded_length(
    first_documents: dict[corpus.Side, list[corpus.Document]],
) -> None:
    texts = [document.text for documents in first_documents.values() for document in documents]
    assert all(400 <= len(text) <= 80_000 for text in texts)
    assert sum(" the " in text for text in texts) > 0.8 * len(texts)
    paragraphs = [p for text in texts[60:] for p in text.split("\n\n") if len(p) >= 80]
    assert len(paragraphs) == len(set(paragraphs))


def test_the_corpus_order_is_deterministic(
    first_documents: dict[corpus.Side, list[corpus.Document]],
) -> None:
    assert list(islice(corpus.documents("demo"), 10)) == first_documents["demo"][:10]


def test_the_file_has_fineweb_s_columns_and_ends_at_the_budget(tmp_path: Path) -> None:
    target = tmp_path / "corpus.parquet"
    written = corpus.write_parquet(target, "demo", 150_000)
    table = pq.read_table(target)
    assert {"text", "id", "dump", "url", "date", "file_path", "language"} <= set(table.column_names)
    texts = table["text"].to_pylist()
    assert sum(map(len, texts)) == written
    assert written - len(texts[-1]) < 150_000 <= written


def test_docstrings_are_found_and_broken_sources_skipped() -> None:
    source = '"""Module text that is long enough to be taken as one paragraph of prose."""\n'
    source += (
        'def f():\n    """Function text that is long enough to be taken as one paragraph, too."""\n'
    )
    assert corpus._docstrings(source).split("\n\n") == [
        "Module text that is long enough to be taken as one paragraph of prose.",
        "f\nFunction text that is long enough to be taken as one paragraph, too.",
    ]
    assert corpus._docstrings("def f(:") == ""
