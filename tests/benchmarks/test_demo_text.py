"""The text that benchmarks make: whole or absent, and never put where there is something."""

from pathlib import Path

import pytest

from benchmarks import demo_text


def test_text_that_was_interrupted_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, *_: object) -> None:
        path.write_bytes(b"a part")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_text, "write_parquet", interrupted)
    text = tmp_path / "work" / "corpus"
    with pytest.raises(KeyboardInterrupt):
        demo_text.make_demo_text(text)
    assert not text.exists()
    monkeypatch.setattr(demo_text, "write_parquet", lambda path, *_: path.write_bytes(b"whole"))
    demo_text.make_demo_text(text)
    assert [path.read_bytes() for path in text.iterdir()] == [b"whole"]


def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    demo_text.make_demo_text(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("num_tokens", "num_chars"), [(None, 9_000_000), (50_000, 2_500_000), (200_000, 9_000_000)]
)
def test_a_small_cache_needs_little_text(
    num_tokens: int | None, num_chars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(demo_text, "write_parquet", lambda *words: asked.append(words[-1]))
    demo_text.make_demo_text(tmp_path / "corpus", num_tokens)
    assert asked == [num_chars]
