"""A tokenizer is passed on as data: which files, and what of its configuration."""

import json
from pathlib import Path
from typing import Any

import pytest

from stages.model_files.tokenizer_files import TOKENIZER_FILES, load_tokenizer, pass_on_tokenizer
from tests.support.tiny import save_tiny_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    save_tiny_tokenizer(directory)
    return directory


def passed_on(source: Path, target: Path) -> tuple[str, ...]:
    target.mkdir()
    names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    return pass_on_tokenizer(names, source.joinpath, target)


def change(source: Path, **changes: Any) -> None:
    path = source / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_harmless_tokenizer_is_copied_byte_for_byte(source: Path, tmp_path: Path) -> None:
    assert passed_on(source, tmp_path / "target") == ()
    for path in source.iterdir():
        assert (tmp_path / "target" / path.name).read_bytes() == path.read_bytes()


def test_only_tokenizer_files_of_a_fixed_list_are_copied(source: Path, tmp_path: Path) -> None:
    for name in ("tokenizer_evil.py", "vocab.pkl", "merges.txt.sh", "sub/tokenizer.json"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"")
    passed_on(source, tmp_path / "target")
    assert {path.name for path in (tmp_path / "target").iterdir()} <= set(TOKENIZER_FILES)
    assert not any("/" in name or name.endswith((".py", ".pkl")) for name in TOKENIZER_FILES)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoTokenizer": ["stranger/repo--evil.Evil", None]}),
        ("init_inputs", ["/etc/passwd"]),
        ("vocab_file", "/etc/passwd"),
        ("fast_tokenizer_files", ["tokenizer.1.json"]),
        ("tokenizer_class", "Evil"),
        ("tokenizer_class", "stranger/repo--evil.Evil"),
        ("tokenizer_class", {"a": 1}),
    ],
)
def test_settings_that_name_code_or_files_are_left_out(
    source: Path, tmp_path: Path, key: str, value: object
) -> None:
    change(source, **{key: value})
    assert passed_on(source, tmp_path / "target") == (key,)
    written = json.loads((tmp_path / "target" / "tokenizer_config.json").read_text())
    assert written.get(key) in (None, "PreTrainedTokenizerFast")
    assert written["eos_token"] == "<|endoftext|>"
    assert load_tokenizer(tmp_path / "target")("the student")["input_ids"]


@pytest.mark.parametrize(
    ("name", "kept"),
    [("GPT2Tokenizer", True), ("Evil", False), ("AutoModel", False), ("os", False), (1, False)],
)
def test_without_tokenizer_json_the_class_must_be_one_of_transformers(
    source: Path, tmp_path: Path, name: object, kept: bool
) -> None:
    (source / "tokenizer.json").rename(source / "vocab.json")
    change(source, tokenizer_class=name)
    passed_on(source, tmp_path / "target")
    written = json.loads((tmp_path / "target" / "tokenizer_config.json").read_text())
    assert ("tokenizer_class" in written) is kept


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"model": {"type": "BPE"}}'])
def test_an_unreadable_tokenizer_file_is_named(source: Path, data: bytes) -> None:
    (source / "tokenizer.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"source: its tokenizer is unreadable: .*Put its files"):
        load_tokenizer(source)
