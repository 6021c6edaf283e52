"""The conversations of a unit become documents that fit in rows, and counts of what became of them.

In: conversations, the teacher's tokenizer and its template. Out: token ids, with those marked that
are scored. Nothing is cut: what does not fit in a row is split at its messages, dropped or refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cache_format.metadata.receipt import ConversationCounts
from cache_format.metadata.spec_parts.corpus import ChatSpec
from stages.cache_teacher.corpus.chat.chat_template import (
    ChatTemplate,
    RefusedByTemplateError,
    SpansUnknownError,
)
from stages.cache_teacher.corpus.chat.control_text import RESERVED, Span
from stages.cache_teacher.corpus.chat.conversation_tokenizer import (
    ConversationTokenizer,
    EncodedConversation,
)
from stages.cache_teacher.corpus.chat.parts import parts_of
from stages.cache_teacher.corpus.formats.conversation import ASSISTANT
from stages.cache_teacher.corpus.formats.document_file import BadDocument, Conversation
from stages.cache_teacher.corpus.units import UnitDocuments


@dataclass(frozen=True, kw_only=True)
class EncodedUnit:
    """What of a unit's conversations is learned from."""

    documents: list[EncodedConversation]
    """Each has a scored token, and fits in a row."""
    num_conversations: int
    """That they are of."""
    num_refused: int
    """That are not rendered, or of which is not known what the assistant says."""
    counts: ConversationCounts


class ChatEncoder:
    """Encodes conversations. One thread at a time."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_id: int) -> None:
        """``tokenizer`` is transformers'. Raises ValueError where it has no usable template."""
        self._tokenizer = ConversationTokenizer(
            tokenizer.backend_tokenizer, vocab_size, eos_token_id
        )
        self._template = ChatTemplate(tokenizer, self._tokenizer.control_text)

    def encode_unit(
        self, documents: UnitDocuments, chat: ChatSpec, max_ids: int | None
    ) -> EncodedUnit:
        """All conversations, none longer than ``max_ids`` tokens.

        Raises ValueError naming file and document where one cannot be rendered, or the template
        does not tell what the assistant says, unless such are skipped; and where one is too long
        and that is to be an error.
        """
        rendered: list[tuple[str, Sequence[Span]]] = []
        kept: list[tuple[str, Conversation]] = []
        for place, conversation in zip(documents.places, documents.conversations, strict=True):
            text = self._rendered(conversation, chat)
            if isinstance(text, BadDocument):
                documents.refuse(place, text)
                continue
            rendered.append(text)
            kept.append((place, conversation))
        taken: list[EncodedConversation] = []
        counts, num_taken = ConversationCounts(), 0
        encoded = self._tokenizer.encode_rendered(rendered)
        for whole, (place, conversation) in zip(encoded, kept, strict=True):
            parts, count = [whole], ConversationCounts()
            if max_ids is not None and len(whole.ids) > max_ids:
                parts, count = self._shortened(conversation, chat, max_ids, place, len(whole.ids))
            scored = [part for part in parts if part.is_scored[1:].any()]
            if parts and not scored:
                count = ConversationCounts(num_unscored=1)
            taken += scored
            num_taken += bool(scored)
            counts += count
        return EncodedUnit(
            documents=taken,
            num_conversations=num_taken,
            num_refused=len(documents.conversations) - len(kept),
            counts=counts,
        )

    def _shortened(
        self, conversation: Conversation, chat: ChatSpec, max_ids: int, place: str, num_ids: int
    ) -> tuple[list[EncodedConversation], ConversationCounts]:
        """What is taken of a conversation that is too long."""
        if chat.long_conversations == "error":
            raise ValueError(
                f"{place}: the conversation has {num_ids:,} tokens, but a row holds {max_ids:,}. "
                'Raise sequence_length, or set long_conversations to "split" or "drop".'
            )
        if chat.long_conversations == "drop":
            return [], ConversationCounts(num_too_long=1)

        def encode(part: Conversation) -> EncodedConversation | None:
            text = self._rendered(part, chat)
            if isinstance(text, BadDocument):
                return None
            (encoded,) = self._tokenizer.encode_rendered([text])
            return encoded if len(encoded.ids) <= max_ids else None

        parts, num_left_out = parts_of(conversation, encode)
        if not parts:
            return [], ConversationCounts(num_too_long=1)
        return parts, ConversationCounts(num_split=1, num_incomplete=int(num_left_out > 0))

    def _rendered(
        self, conversation: Conversation, chat: ChatSpec
    ) -> tuple[str, Sequence[Span]] | BadDocument:
        mark = self._tokenizer.control_text.marked
        try:
            if found := _reserved(conversation.messages):
                return BadDocument(
                    f"it has U+{ord(found):04X}, which Unicode reserves for programs and keeps out "
                    "of text"
                )
            messages: list[Any] = [
                mark(dict(message)) | {"role": message["role"]} for message in conversation.messages
            ]
            if chat.train_on == "all":
                text = self._template.render(messages)
                return text, [(0, len(text))]
            return self._template.render_with_spans(messages, _chosen(conversation, chat))
        except (RefusedByTemplateError, SpansUnknownError) as error:
            return BadDocument(str(error))
        except RecursionError:
            return BadDocument("a message is nested too deeply")


def _chosen(conversation: Conversation, chat: ChatSpec) -> list[int]:
    """The numbers of the messages that are learned from."""
    first = conversation.completion_start if chat.train_on == "completion" else 0
    return [
        number
        for number, message in enumerate(conversation.messages)
        if message["role"] == ASSISTANT and number >= first
    ]


def _reserved(value: Any) -> str | None:
    """The first reserved code point of any text in ``value``."""
    if isinstance(value, str):
        found = RESERVED.search(value)
        return None if found is None else found[0]
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return next(filter(None, map(_reserved, value)), None)
    return None
