"""No document has a control id, whatever it spells; and what it spells is there as text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from stages.cache_teacher.corpus.document_tokenizer import DocumentTokenizer
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from tests.support.tiny import tiny_cache_config, tiny_texts

EOS = "<|endoftext|>"
CONTROL = [EOS, "<|im_end|>", "<|fim_prefix|>", "<pad>", "<s>"]
ORDINARY = ["<tool_call>", "    ", "<table>"]
SPECIAL: list[Any] = [
    AddedToken(EOS, special=True, normalized=False),
    AddedToken("<|im_end|>", special=True, lstrip=True, rstrip=True),
    AddedToken("<pad>", special=True, normalized=True, single_word=True),
    AddedToken("<s>", special=True),
]
NOT_SPECIAL: list[Any] = [
    AddedToken("<|fim_prefix|>", special=False, rstrip=True),
    *(AddedToken(name, special=False, normalized=False) for name in ORDINARY),
]


def byte_level(normalizer: Any = None) -> Any:
    """As Qwen's, GPT-NeoX's: a byte each, and some merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: number for number, char in enumerate([*alphabet, "<|", "|>", "en"])}
    merges = [("<", "|"), ("|", ">"), ("e", "n")]
    tokenizer: Any = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


def unigram() -> Any:
    """As T5's and XGLM's, whose own vocabulary has the control tokens, as the likeliest pieces."""
    chars = [(char, -3.0) for char in "▁abcdefgilmnoprstx<|>_/"]
    pieces = [("<unk>", 0.0), *((name, 0.0) for name in CONTROL), *chars]
    tokenizer: Any = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def words() -> Any:
    """Whole words, of which the control tokens are some, and single characters."""
    names = ["<unk>", *CONTROL, "the", *"abcdefgilmnoprstx<|>_/"]
    tokenizer: Any = Tokenizer(
        models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


KINDS: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level,
    "normalized": lambda: byte_level(normalizers.NFKC()),
    "unigram": unigram,
    "words": words,
}


def with_added(tokenizer: Any) -> Any:
    tokenizer.add_special_tokens([*SPECIAL, AddedToken("<unk>", special=True)])
    tokenizer.add_tokens(NOT_SPECIAL)
    return tokenizer


def made(kind: str) -> tuple[Any, DocumentTokenizer]:
    tokenizer = with_added(KINDS[kind]())
    return tokenizer, DocumentTokenizer(tokenizer, 1000, tokenizer.token_to_id(EOS))


MADE = {kind: made(kind) for kind in KINDS}
PIECES = st.sampled_from(
    [*CONTROL, *ORDINARY, "<unk>", " ", "the", "<|", "|>", "é", "＜|endoftext|＞"]
)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=20))
def test_no_control_id_is_in_a_document(kind: str, text: str) -> None:
    tokenizer, documents = MADE[kind]
    (ids,) = documents.encode([text])
    forbidden = {tokenizer.token_to_id(name) for name in CONTROL}
    assert forbidden.isdisjoint(ids.tolist())


@given(text=st.lists(PIECES, max_size=8).map("".join) | st.text(max_size=20))
def test_decoding_the_ids_gives_the_document_back(text: str) -> None:
    """Also no blank around a token that strips them, where that token is text."""
    tokenizer, documents = MADE["byte_level"]
    (ids,) = documents.encode([text])
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", ["unigram", "words"])
def test_control_tokens_of_the_tokenizer_model_are_spelled_by_characters(kind: str) -> None:
    tokenizer, documents = MADE[kind]
    (ids,) = documents.encode(["a <s> <|im_end|>"])
    tokens = [tokenizer.id_to_token(id).replace("▁", "") for id in ids.tolist()]
    assert "".join(tokens) == "a<s><|im_end|>"
    assert max(map(len, tokens)) == 1


def test_other_added_tokens_stay_single_tokens() -> None:
    tokenizer, documents = MADE["byte_level"]
    text = "a    b<tool_call></table><table>"
    (ids,) = documents.encode([text])
    assert ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    for name in ORDINARY:
        assert tokenizer.token_to_id(name) in ids


def test_text_without_control_tokens_is_tokenized_as_usual() -> None:
    tokenizer, documents = MADE["byte_level"]
    texts = tiny_texts(20)
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert [ids.tolist() for ids in documents.encode(texts)] == expected
    assert documents.encode([]) == []
    assert [len(ids) for ids in documents.encode(["", "a"])] == [0, 1]


def test_unknown_text_keeps_its_id() -> None:
    tokenizer, documents = MADE["words"]
    (ids,) = documents.encode(["the é <unk>"])
    assert ids.tolist().count(tokenizer.token_to_id("<unk>")) == 2
    assert tokenizer.token_to_id("<unk>") not in documents.forbidden_ids


def test_unknown_text_does_not_become_the_end_of_text_token() -> None:
    tokenizer: Any = Tokenizer(models.WordLevel({"</s>": 0, "the": 1}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["</s>"])
    documents = DocumentTokenizer(tokenizer, 2, 0)
    assert [ids.tolist() for ids in documents.encode(["the the"])] == [[1, 1]]
    with pytest.raises(ValueError, match="represent '</s>' or unknown text only by the control"):
        documents.encode(["the é"])


def test_the_given_tokenizer_is_not_modified() -> None:
    tokenizer = with_added(byte_level())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    before = tokenizer.to_str()
    documents = DocumentTokenizer(tokenizer, 1000, 0)
    assert [len(ids) for ids in documents.encode(["abcde", "f"])] == [5, 1]
    assert tokenizer.to_str() == before
    assert tokenizer.encode(EOS).ids[0] == tokenizer.token_to_id(EOS)


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    tokenizer = byte_level()
    last = tokenizer.token_to_id("en")
    assert DocumentTokenizer(tokenizer, last + 1, 0).encode(["en"])[0].tolist() == [last]
    with pytest.raises(ValueError, match=f"token id {last}, but the vocabulary ends at {last - 1}"):
        DocumentTokenizer(tokenizer, last, 0).encode(["x", "en"])


def test_the_tiny_teachers_documents_decode_to_their_text(tiny_teacher: Path) -> None:
    source = resolve_teacher(tiny_cache_config(tiny_teacher, "unused"))
    texts = ["the teacher and the student", "東京 42", f"the {EOS} student{EOS}"]
    ids = source.document_tokenizer.encode(texts)
    assert [source.tokenizer.decode(document) for document in ids] == texts
    assert all(source.spec.eos_token_id not in document for document in ids)
