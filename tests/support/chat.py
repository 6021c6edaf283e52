"""A chat teacher, conversations, and a corpus of them, as small as ``tiny`` makes them."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.tiny import save_tiny_teacher, tiny_texts

Messages = list[dict[str, Any]]

START, END, EOS = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML without marks of what the assistant says."""

MARKED_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_chat_teacher(directory: Path, template: str | None = CHATML, **changes: Any) -> Path:
    """``save_tiny_teacher`` with ChatML's special tokens and ``template``, of up to 512 positions.

    ``<|im_start|>`` is not marked as special, as in some tokenizers.
    """
    save_tiny_teacher(directory, max_position_embeddings=512, **changes)
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    first = 1 + max(tokenizer["model"]["vocab"].values())
    tokenizer["added_tokens"] += [
        {
            "id": first + number,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": content == END,
        }
        for number, content in enumerate((START, END))
    ]
    path.write_text(json.dumps(tokenizer))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


def tiny_conversations(num_conversations: int, seed: int = 0, max_turns: int = 3) -> list[Messages]:
    """Conversations of 1 to ``max_turns`` exchanges, half of them with a system prompt."""
    rng = random.Random(seed)
    texts = iter(tiny_texts(num_conversations * (2 * max_turns + 1), seed, max_words=6))
    conversations = []
    for _ in range(num_conversations):
        messages = [said("system", next(texts))] if rng.random() < 0.5 else []
        for _ in range(rng.randint(1, max_turns)):
            messages += [said("user", next(texts)), said("assistant", next(texts))]
        conversations.append(messages)
    return conversations


def said(role: str, content: str) -> dict[str, Any]:
    """A message."""
    return {"role": role, "content": content}


def write_chat_parquet(path: Path, conversations: Sequence[Messages | None]) -> Path:
    """One Parquet file with a column ``messages``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": range(len(conversations)), "messages": pa.array(list(conversations))})
    pq.write_table(table, path, row_group_size=16)
    return path


def write_chat_jsonl(path: Path, records: Sequence[Any]) -> Path:
    """One line of JSON for each record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
