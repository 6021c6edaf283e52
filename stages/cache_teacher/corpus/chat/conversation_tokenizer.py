"""Rendered conversations become token ids, of which some are scored.

Special tokens that the template wrote become their ids; what only spells one is text, as in a plain
document (``DocumentTokenizer``). The whole text goes through the teacher's tokenizer at once, so
that it is split where the tokenizer splits it. N tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.cache_teacher.corpus.chat.control_text import ControlText, Span, alias_of
from stages.cache_teacher.corpus.document_tokenizer import DocumentTokenizer, IntArray


class EncodedConversation(NamedTuple):
    """Token ids of a conversation."""

    ids: IntArray
    """[N]"""
    is_scored: npt.NDArray[np.bool_]
    """[N], whether the token is to be learned."""


class ConversationTokenizer(DocumentTokenizer):
    """The teacher's tokenizer for rendered conversations."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_id: int) -> None:
        from tokenizers import AddedToken

        super().__init__(tokenizer, vocab_size, eos_token_id)
        self.control_text = ControlText({token.content: id for id, token in self._control.items()})
        # Not special, so they are found where special tokens are not; else as those they are of.
        self._tokenizer.add_tokens(
            [
                AddedToken(
                    alias_of(id),
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                    special=False,
                )
                for id, token in self._control.items()
            ]
        )
        self._id_of_alias = {self._tokenizer.token_to_id(alias_of(id)): id for id in self._control}

    def encode_rendered(
        self, rendered: Sequence[tuple[str, Sequence[Span]]]
    ) -> list[EncodedConversation]:
        """The ids of each text; those are scored that have a character in one of its spans.

        Raises ValueError as ``encode`` does.
        """
        prepared = [self.control_text.with_aliases(text, spans) for text, spans in rendered]
        encodings = self._tokenizer.encode_batch(
            [text for text, _ in prepared], add_special_tokens=False
        )
        encoded = [
            self._encoded(encoding, spans)
            for encoding, (_, spans) in zip(encodings, prepared, strict=True)
        ]
        self._require_in_vocabulary([one.ids for one in encoded])
        return encoded

    def _encoded(self, encoding: Any, spans: Sequence[Span]) -> EncodedConversation:
        ids = np.asarray(encoding.ids, dtype=np.int32)
        begins, ends = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        is_scored = np.zeros(len(ids), np.bool_)
        for begin, end in spans:
            is_scored |= (begins < end) & (ends > begin)
        is_control = np.isin(ids, list(self.forbidden_ids))
        if is_control.any():  # made by the model itself of text
            parts = [
                self._spelled(int(id)) if is_its_own else np.array([id], np.int32)
                for id, is_its_own in zip(ids, is_control, strict=True)
            ]
            is_scored = np.repeat(is_scored, [len(part) for part in parts])
            ids = np.concatenate(parts)
        for place in np.flatnonzero(np.isin(ids, list(self._id_of_alias))):
            ids[place] = self._id_of_alias[int(ids[place])]
        return EncodedConversation(ids, is_scored)
