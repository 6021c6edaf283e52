"""Documents become token ids, in which no control token is: text is text, whatever it spells.

A document about language models may well contain ``<|endoftext|>``. Read as the control token, it
would end the document in its midst. So whatever the tokenizer marks as special, and whatever is
written ``<|…|>`` (not all of Qwen's and others' control tokens are marked), is split into ordinary
tokens. Other added tokens stay as the teacher's tokenizer has them, such as GPT-NeoX's runs of
spaces and Gemma's HTML tags, which are text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]

_CONTROL_NAME = re.compile(r"<\|.*\|>", re.DOTALL)


class DocumentTokenizer:
    """The teacher's tokenizer for documents, a copy of ``tokenizers``'; that one is left as it is.

    To copy one as large as Qwen's takes a second.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_id: int) -> None:
        from tokenizers import AddedToken, Tokenizer

        serialized = tokenizer.to_str()
        copy: Any = Tokenizer.from_str(serialized)
        copy.no_truncation()
        copy.no_padding()
        added = copy.get_added_tokens_decoder()
        named = {id: token for id, token in added.items() if _CONTROL_NAME.fullmatch(token.content)}
        # Sets a mark on tokens that are there; they keep their ids.
        copy.add_special_tokens(
            [AddedToken(token.content, special=True) for token in named.values()]
        )
        copy.encode_special_tokens = True
        self._tokenizer, self._vocab_size = copy, vocab_size
        self._unknown_id = _unknown_id(copy, json.loads(serialized)["model"])
        self._control = {id: token for id, token in added.items() if token.special or id in named}
        self.forbidden_ids = (self._control.keys() - {self._unknown_id}) | {eos_token_id}
        """Ids that no document has: of control tokens, but not of that for unknown text."""

    def encode(self, texts: Sequence[str]) -> list[IntArray]:
        """Token ids of each text, without any that is not from the text.

        Raises ValueError if the tokenizer makes an id the teacher's head has no row for, or cannot
        spell a text without a control token.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        documents = [self._without_control(np.asarray(e.ids, dtype=np.int32)) for e in encodings]
        self._require_in_vocabulary(documents)
        return documents

    def _require_in_vocabulary(self, documents: Sequence[IntArray]) -> None:
        largest = max((int(ids.max()) for ids in documents if len(ids)), default=0)
        if largest >= self._vocab_size:
            raise ValueError(
                f"the tokenizer made token id {largest}, but the vocabulary ends at "
                f"{self._vocab_size - 1}. The tokenizer does not match the teacher."
            )

    def _without_control(self, ids: IntArray) -> IntArray:
        """``ids`` with control tokens spelled out that the model itself has made.

        Unigram and word-level models may have ``</s>`` in their own vocabulary.
        """
        found = np.flatnonzero(np.isin(ids, list(self.forbidden_ids)))
        first, *others = np.split(ids, found)
        parts = [first]
        for piece in others:
            parts += [self._spelled(int(piece[0])), piece[1:]]
        return np.concatenate(parts)

    def _spelled(self, control_id: int) -> IntArray:
        """Ids of a control token's characters one by one."""
        written: str = self._tokenizer.id_to_token(control_id)
        ids = [token.id for char in written for token in self._tokenizer.model.tokenize(char)]
        if control_id == self._unknown_id or not self.forbidden_ids.isdisjoint(ids):
            raise ValueError(
                f"in a document, the tokenizer can represent {written!r} or unknown text only by "
                f"the control token with id {control_id}. Use a teacher that distinguishes them."
            )
        return np.array(ids, np.int32)


def _unknown_id(tokenizer: Any, model: Mapping[str, Any]) -> int | None:
    """The id that stands for what the tokenizer cannot spell."""
    if model.get("unk_token") is not None:
        return cast(int | None, tokenizer.token_to_id(model["unk_token"]))
    return cast(int | None, model.get("unk_id"))
