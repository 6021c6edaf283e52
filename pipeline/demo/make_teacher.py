"""Train the demo's teacher: a small Qwen2 and its byte-pair tokenizer (``make demo-teacher``).

In: the ``teacher`` side of the documentation corpus (``corpus.py``) and any Parquet files given
with ``--parquet``. Out: model and tokenizer as ``save_pretrained`` writes them, and figures for the
model card. Not part of the pipeline: it made the files beside this one, once.

The budget is wall time, because it is what a reader has: the learning rate follows the elapsed
share of ``--minutes`` (warm-up 2 %, constant, linear to zero over the last 40 %), and the card
states the tokens that came of it.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

_EOS = "<|endoftext|>"
_CONTEXT = 256
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the model card reports."""

    num_parameters: int
    num_train_tokens_seen: int
    num_unique_tokens: int
    num_steps: int
    minutes: float
    held_out_loss: float
    held_out_tokens: int


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--parquet", "parquet_dir", type=click.Path(exists=True, path_type=Path))
@click.option("--minutes", type=float, default=90.0, show_default=True)
@click.option("--vocab-size", type=int, default=4096, show_default=True)
def main(out: Path, parquet_dir: Path | None, minutes: float, vocab_size: int) -> None:
    train_texts, held_out_texts = _texts(parquet_dir)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(train_texts, vocab_size)
    tokenizer.save_pretrained(out)
    train_ids, held_out_ids = (_encode(tokenizer, texts) for texts in (train_texts, held_out_texts))
    click.echo(f"{len(train_ids):,} training tokens, {len(held_out_ids):,} held out")
    model, seen, steps = _train(
        out, train_ids, held_out_ids, minutes, tokenizer.eos_token_id, vocab_size
    )
    import torch

    model.to(torch.bfloat16).save_pretrained(out)
    outcome = Outcome(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_train_tokens_seen=seen,
        num_unique_tokens=len(train_ids),
        num_steps=steps,
        minutes=minutes,
        held_out_loss=_loss(model.float(), held_out_ids, tokenizer.eos_token_id),
        held_out_tokens=len(held_out_ids),
    )
    (out / "README.md").write_text(model_card(outcome), encoding="utf-8")
    click.echo(json.dumps(vars(outcome), indent=1))


def model_card(outcome: Outcome) -> str:
    """What the model is, what it was made from, and how good it is."""
    perplexity = math.exp(outcome.held_out_loss)
    return f"""---
license: apache-2.0
language: en
---

# The demo's teacher

A `Qwen2ForCausalLM` of {outcome.num_parameters:,} parameters (5 layers, width 256, 4 heads,
2 key-value heads, tied embedding, bfloat16) with a byte-pair tokenizer of 4,096 ids. It is there to
show what distillation buys on two CPU cores, and is good for nothing else.

- **Data**: {outcome.num_unique_tokens:,} tokens of two kinds: docstrings and documentation files of
  Python's standard library and installed packages (the `teacher` side of `corpus.py`), and English
  news, reviews, forum posts, speeches and the Brown corpus. The demo's own documents are of the
  other side: the hash of a module's name decides, so none of them was trained on. What two modules
  say in the same words can be on both sides.
- **Training**: {outcome.num_steps:,} steps of {_BATCH} × {_CONTEXT} tokens, that is
  {outcome.num_train_tokens_seen:,} tokens, {outcome.minutes:.0f} minutes on two CPU cores. AdamW,
  bfloat16 autocast, peak learning rate 3e-3: warm-up, constant, then linear to zero.
- **Held-out loss**: {outcome.held_out_loss:.4f} nats a token (perplexity {perplexity:.1f}) on
  {outcome.held_out_tokens:,} tokens, every 50th document of either kind.

`make demo-teacher` makes another one.
"""


def _texts(parquet_dir: Path | None) -> tuple[list[str], list[str]]:
    """Training and held-out texts; every 50th document of either source is held out."""
    from pipeline.demo.corpus import documents

    texts = [document.text for document in documents("teacher")]
    if parquet_dir is not None:
        import pyarrow.parquet as pq

        for path in sorted(parquet_dir.glob("*.parquet")):
            texts += pq.read_table(path, columns=["text"])["text"].to_pylist()
    held_out = texts[::50]
    return [text for i, text in enumerate(texts) if i % 50], held_out


def _train_tokenizer(texts: list[str], vocab_size: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, eos_token=_EOS, pad_token=_EOS)


def _encode(tokenizer: Any, texts: list[str]) -> Any:
    import torch

    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts):
        ids.extend(encoding.ids)
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids)


def _train(
    out: Path, train_ids: Any, held_out_ids: Any, minutes: float, eos: int, vocab_size: int
) -> tuple[Any, int, int]:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=448,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=eos,
        eos_token_id=eos,
    )
    model = Qwen2ForCausalLM(config)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    step_loss = torch.compile(_packed_loss)
    starts = torch.arange(0, len(train_ids) - _CONTEXT - 1, _CONTEXT)
    begin, step, epoch = time.monotonic(), 0, 0
    while True:
        # A new offset each epoch, so that rows cut the text elsewhere.
        generator = torch.Generator().manual_seed(epoch)
        offset = int(torch.randint(_CONTEXT, (), generator=generator))
        order: Any = starts[torch.randperm(len(starts) - 1, generator=generator)] + offset
        for rows in order[: len(order) // _BATCH * _BATCH].split(_BATCH):
            done = (time.monotonic() - begin) / 60 / minutes
            if done >= 1:
                return model, step * _BATCH * _CONTEXT, step
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(done / 0.02, 1.0, (1 - done) / 0.4)
            batch = torch.stack([train_ids[row : row + _CONTEXT + 1] for row in rows.tolist()])
            loss = step_loss(model, batch, eos)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 500 == 0:
                model.save_pretrained(out)
                held_out = _loss(model, held_out_ids[: 200 * _CONTEXT], eos)
                speed = step * _BATCH * _CONTEXT / (time.monotonic() - begin)
                click.echo(
                    f"step {step} epoch {epoch} done {done:.1%} loss {loss.item():.3f} "
                    f"held-out {held_out:.3f} {speed:,.0f} tokens/s"
                )
        epoch += 1


def _packed_loss(model: Any, batch_BT: Any, eos: int) -> Any:
    """Mean next-token loss of packed rows whose documents do not attend to each other."""
    import torch

    inputs_BT, labels_BT = batch_BT[:, :-1], batch_BT[:, 1:]
    document_BT = torch.nn.functional.pad((inputs_BT == eos).cumsum(1)[:, :-1], (1, 0))
    T = inputs_BT.shape[1]
    position_T = torch.arange(T)
    causal_TT = position_T[:, None] >= position_T[None, :]
    mask_B1TT = (causal_TT & (document_BT[:, :, None] == document_BT[:, None, :]))[:, None]
    is_start_BT = torch.nn.functional.pad(document_BT.diff(dim=1) != 0, (1, 0), value=True)
    start_BT = torch.where(is_start_BT, position_T, 0).cummax(1).values
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(
            inputs_BT, attention_mask=mask_B1TT, position_ids=position_T - start_BT, use_cache=False
        ).last_hidden_state
        logits = model.lm_head(hidden)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels_BT.flatten())


def _loss(model: Any, ids: Any, eos: int) -> float:
    """Mean held-out loss over rows of the training length."""
    import torch

    num_rows = (len(ids) - 1) // _CONTEXT
    total = 0.0
    with torch.no_grad():
        for row in range(num_rows):
            span = ids[row * _CONTEXT : row * _CONTEXT + _CONTEXT + 1]
            total += _packed_loss(model, span[None], eos).item()
    return total / num_rows


if __name__ == "__main__":
    main()
