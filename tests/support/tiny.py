"""A teacher, a corpus and a cache small enough to be made anew in every test session.

Everything is a pure function of its arguments. ``save_tiny_teacher`` writes a real
``Qwen2ForCausalLM`` with a byte-level tokenizer, ``write_fineweb_parquet`` a corpus in FineWeb's
schema, and ``tiny_cache`` runs stage one over both.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.cache_teacher.config import CacheTeacherConfig

_VOCABULARY = """
the of and a to in is was he for it with as his on be at by this had not are but from or have an
they which one you were her all she there would their we him been has when who will more teacher
student cache row token unit shard naïve café Straße 東京 42 1999
"""
_WORDS = _VOCABULARY.split()


def tiny_texts(num_documents: int, seed: int = 0, max_words: int = 40) -> list[str]:
    """Documents of 1 to ``max_words`` words."""
    rng = random.Random(seed)
    return [
        " ".join(rng.choices(_WORDS, k=rng.randint(1, max_words))) + "."
        for _ in range(num_documents)
    ]


def save_tiny_tokenizer(directory: Path, vocab_size: int = 320) -> int:
    """Train a byte-level BPE tokenizer and save it; returns the number of its ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_texts(200, seed=99), trainer)
    tokenizer_class: Any = PreTrainedTokenizerFast
    tokenizer_class(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
        directory
    )
    return tokenizer.get_vocab_size()


def save_tiny_teacher(
    directory: Path, *, tie: bool = True, padding_rows: int = 8, seed: int = 0, **changes: Any
) -> Path:
    """Save a Qwen2 of width 32 with its tokenizer; ``changes`` go into its config."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    num_ids = save_tiny_tokenizer(directory)
    settings: dict[str, Any] = {
        "vocab_size": num_ids + padding_rows,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,  # the default would make every distribution flat
        "tie_word_embeddings": tie,
        "bos_token_id": None,
        "eos_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(Qwen2Config(**(settings | changes)))
    model.save_pretrained(directory)
    return directory


def write_fineweb_parquet(
    path: Path, texts: Sequence[str | None], row_group_size: int = 16
) -> Path:
    """Write ``texts`` as one Parquet file with FineWeb's columns."""
    numbers = range(len(texts))
    table = pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "id": [f"<urn:uuid:{number}>" for number in numbers],
            "dump": ["CC-MAIN-2026-01"] * len(texts),
            "url": [f"https://example.org/{number}" for number in numbers],
            "language": ["en"] * len(texts),
            "language_score": [0.9] * len(texts),
            "token_count": [len(text or "") for text in texts],
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size, compression="zstd")
    return path


def tiny_cache_config(
    teacher: Path | str, corpus: Path | str, **changes: Any
) -> CacheTeacherConfig:
    """Settings of stage one that fit the tiny teacher; ``changes`` replace some."""
    settings: dict[str, Any] = {
        "teacher": str(teacher),
        "corpus": str(corpus),
        "teacher_dtype": "float32",
        "device": "cpu",
        "num_tokens": 10**9,
        "sequence_length": 32,
        "documents_per_unit": 10,
        "validation_every": 4,
        "top_k": 12,
        "hidden_projection_dim": 8,
        "rows_per_forward": 4,
        "head_chunk": 50,
        "compile": "off",
    }
    return CacheTeacherConfig(**(settings | changes))


def tiny_cache(root: Path, num_documents: int = 80, **changes: Any) -> Path:
    """A finished cache at ``root/cache``, its teacher at ``root/teacher``."""
    teacher = save_tiny_teacher(root / "teacher")
    return cache_texts(teacher, root / "cache", tiny_texts(num_documents), **changes)


def cache_texts(teacher: Path, out: Path, texts: Sequence[str], **changes: Any) -> Path:
    """A finished cache of ``texts`` at ``out``, its corpus beside it."""
    from stages.cache_teacher.run import cache_teacher

    name = "corpus" if out.name == "cache" else out.name
    corpus = write_fineweb_parquet(out.parent / f"{name}.parquet", texts)
    cache_teacher(
        tiny_cache_config(teacher, corpus, **changes),
        out,
        recipe_toml="# tiny\n",
        report=lambda _: None,
    )
    return out
