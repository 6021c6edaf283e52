"""A tokenizer's chat template renders messages, and says which of the text is the assistant's.

In: messages, their texts marked (``control_text``). Out: the text, and spans of it. transformers
compiles the template in Jinja's sandbox. A template may mark what the assistant says
(``{% generation %}``); where it does not, a message's span is from the end of the conversation
before it, rendered with the prompt to answer, to the end of the conversation with it.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stages.cache_teacher.corpus.chat.control_text import ControlText, Span

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TO_DO = (
    "Put {% generation %} and {% endgeneration %} around what the assistant says into the "
    'template (chat_template.jinja, in a copy of the teacher\'s directory), or set train_on = "all"'
)
# A template that asks for the date would render another text every day. Llama's own default date.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format | replace('%d', '26') | replace('%b', 'Jul') "
    "| replace('%B', 'July') | replace('%m', '07') | replace('%Y', '2024') }}{%- endmacro -%}"
)

Messages = Sequence[Mapping[str, Any]]


class RefusedByTemplateError(Exception):
    """A conversation that the template does not render; the message is the reason."""


class SpansUnknownError(Exception):
    """A template that does not tell which text is the assistant's; the message says what to do."""


def template_of(tokenizer: Any) -> str:
    """The tokenizer's chat template. Raises ValueError where it has none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ValueError(
            "its tokenizer has no chat template, which conversations are rendered with. Use the "
            "teacher that was trained on instructions, or put a chat_template.jinja into a copy of "
            "the teacher's directory."
        )
    return str(template)


def template_sha256(template: str) -> str:
    """The template's identity, wherever it is stored."""
    return hashlib.sha256(template.encode()).hexdigest()


class ChatTemplate:
    """Renders conversations."""

    def __init__(self, tokenizer: Any, control: ControlText) -> None:
        """Raises ValueError where the tokenizer has no template."""
        template = template_of(tokenizer)
        self._has_marks = _MARKS.search(template) is not None
        self._template = (_FIXED_DATE if "strftime_now" in template else "") + template
        self._special_tokens = dict(tokenizer.special_tokens_map)
        self._control = control

    def render(self, messages: Messages) -> str:
        """All of ``messages``. Raises RefusedByTemplateError."""
        return self._render(messages)[0]

    def render_with_spans(
        self, messages: Messages, chosen: Sequence[int]
    ) -> tuple[str, list[Span]]:
        """``messages``, and the spans of those whose numbers are ``chosen``, all the assistant's.

        Raises RefusedByTemplateError, and SpansUnknownError where the spans cannot be told.
        """
        if self._has_marks:
            return self._marked_spans(messages, chosen)
        whole = self.render(messages)
        spans = [self._span_of(messages, number, whole) for number in chosen]
        return whole, [self._control.without_blanks_after(whole, span) for span in spans]

    def _marked_spans(self, messages: Messages, chosen: Sequence[int]) -> tuple[str, list[Span]]:
        """By the template's own marks, of which it has one for each message of the assistant."""
        rendered, spans = self._render(messages, with_marks=True)
        numbers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        if list(chosen) == numbers:
            return rendered, spans
        if len(spans) != len(numbers):
            raise SpansUnknownError(
                f"the chat template marks {len(spans)} texts as generated, but the conversation "
                f"has {len(numbers)} messages of the assistant, so that it is not known which of "
                'them is the last. Set train_on = "assistant"'
            )
        by_number = dict(zip(numbers, spans, strict=True))
        return rendered, [by_number[number] for number in chosen]

    def _span_of(self, messages: Messages, number: int, whole: str) -> Span:
        through = self.render(messages[: number + 1])
        before = (
            self._render(messages[:number], add_generation_prompt=True)[0]
            if number
            else self._up_to_first_answer(messages, through)
        )
        for text, what in ((before, "before"), (through, "up to")):
            if not whole.startswith(text) or len(text) < len(before):
                raise SpansUnknownError(
                    f"the chat template has no marks of what the assistant says, and renders the "
                    f"conversation {what} message {number} differently from the beginning of the "
                    f"whole conversation, {_where_apart(text, whole)}. {_TO_DO}"
                )
        return len(before), len(through)

    def _up_to_first_answer(self, messages: Messages, through: str) -> str:
        """What comes before an answer that is the first message, when ``through`` is rendered.

        Few templates render a conversation without messages, so it goes up to the first place with
        what asks for an answer, found at the end of the message itself.
        """
        asking = self._render(messages[:1], add_generation_prompt=True)[0]
        prompt = asking.removeprefix(through)
        place = through.find(prompt) if asking.startswith(through) else -1
        return through[: place + len(prompt)] if place >= 0 else asking

    def _render(
        self, messages: Messages, *, add_generation_prompt: bool = False, with_marks: bool = False
    ) -> tuple[str, list[Span]]:
        import jinja2
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template
        try:
            (rendered,), spans = render(
                conversations=[messages],
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                return_assistant_tokens_mask=with_marks,
                **self._special_tokens,
            )
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f"the teacher's chat template is not valid Jinja, line {error.lineno}: {error}. "
                "Put the template back from where it came."
            ) from error
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            # What a template does with messages it was not written for may fail in any way.
            raise RefusedByTemplateError(
                f"the teacher's chat template does not render it: {error or type(error).__name__}"
            ) from error
        return rendered, [(int(begin), int(end)) for begin, end in spans[0]] if with_marks else []


def _where_apart(text: str, whole: str) -> str:
    """The first place where ``text`` is not the beginning of ``whole``."""
    shared = next(
        (n for n, (one, other) in enumerate(zip(text, whole, strict=False)) if one != other),
        min(len(text), len(whole)),
    )
    return f"{text[shared:][:30]!r} instead of {whole[shared:][:30]!r}"
