"""Prompts that hide a sentence, the needle, in a haystack of sentences without meaning.

In: a tokenizer, a length in tokens, a depth and a number that chooses words. Out: token ids that
end with a question, its answer and wrong ones. All text is made here, of common words by a fixed
seed, so that a probe needs no data and gives the same prompts everywhere.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

NUM_ANSWERS = 10
"""The right one and others like it: guessing is right once in so many times."""

_CITIES = (
    *("Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Tokyo", "Boston", "Chicago"),
    *("Sydney", "Dublin", "Oslo", "Cairo", "Moscow", "Toronto", "Geneva", "Lisbon", "Athens"),
)
_NOUNS = (
    *("river", "house", "garden", "teacher", "road", "window", "table", "letter", "child", "tree"),
    *("story", "market", "bridge", "mountain", "song", "horse", "door", "field", "ship", "friend"),
    *("school", "station", "picture", "farmer", "doctor", "forest", "king", "island", "train"),
)
_ADJECTIVES = (
    *("old", "small", "quiet", "green", "long", "bright", "new", "heavy", "cold", "simple", "red"),
    *("strange", "early", "famous", "white", "young", "deep", "warm", "dark", "open", "large"),
)
_VERBS = (
    *("followed", "found", "left", "saw", "crossed", "remembered", "reached", "carried", "passed"),
    *("watched", "opened", "kept", "moved", "changed", "covered", "touched", "held", "missed"),
)
_PLACES = (
    *("in the morning", "near the water", "after the rain", "before the winter", "at night"),
    *("on the hill", "behind the wall", "during the summer", "by the sea", "without a word"),
)


@dataclass(frozen=True, kw_only=True)
class NeedlePrompt:
    """Ids that end with the question, and what may follow it."""

    input_ids: list[int]
    answers: list[list[int]]
    """Ids of ``NUM_ANSWERS`` answers, the right one first."""
    number: str
    """The right answer, which nothing but the needle names."""


def make_prompt(tokenizer: Any, length: int, depth: float, trial: int) -> NeedlePrompt:
    """A prompt of exactly ``length`` ids whose needle lies at ``depth``, from 0 to 1, of its text.

    Prompts of one ``trial`` share needle, question and haystack, of which longer ones have more.
    The needle lies between sentences, where it is nearest to its depth; the haystack's first
    sentence may be cut. Raises ValueError where ``length`` has no room for a haystack.
    """
    rng = random.Random(trial)
    city = rng.choice(_CITIES)
    numbers = [str(number) for number in rng.sample(range(10_000, 100_000), NUM_ANSWERS)]
    start = _special_prefix(tokenizer)
    needle = _ids(tokenizer, f" The magic number of {city} is {numbers[0]}.")
    question = _ids(tokenizer, f" The magic number of {city} is")
    space = length - len(start) - len(needle) - len(question)
    if space < 1:
        raise ValueError(
            f"a prompt of {length} tokens has no room for a haystack: needle and question take "
            f"{length - space} tokens. Choose longer prompts."
        )
    before, after = _haystack(tokenizer, space, depth, rng)
    return NeedlePrompt(
        input_ids=[*start, *before, *needle, *after, *question],
        answers=[_answer(tokenizer, city, number, question) for number in numbers],
        number=numbers[0],
    )


def _haystack(
    tokenizer: Any, num_tokens: int, depth: float, rng: random.Random
) -> tuple[list[int], list[int]]:
    """So many ids in all, those before the needle and those after it."""
    sentences: list[list[int]] = []
    missing = num_tokens
    for sentence in _sentences(rng):
        ids = _ids(tokenizer, sentence)
        sentences.append(ids)
        missing -= len(ids)
        if missing <= 0:
            break
    sentences.reverse()  # so that the question follows the same sentences at every length
    sentences[0] = sentences[0][-missing:] if missing else sentences[0]
    ends = [0]
    for ids in sentences:
        ends.append(ends[-1] + len(ids))
    num_before = min(ends, key=lambda end: abs(end - depth * num_tokens))
    every = [id_ for ids in sentences for id_ in ids]
    return every[:num_before], every[num_before:]


def _sentences(rng: random.Random) -> Iterator[str]:
    while True:
        one, other = rng.sample(_NOUNS, 2)
        adjectives = rng.sample(_ADJECTIVES, 2)
        verb, place = rng.choice(_VERBS), rng.choice(_PLACES)
        yield f" The {adjectives[0]} {one} {verb} the {adjectives[1]} {other} {place}."


def _answer(tokenizer: Any, city: str, number: str, question: Sequence[int]) -> list[int]:
    """What follows the question's ids in the needle, where they stay the same before a number."""
    whole = _ids(tokenizer, f" The magic number of {city} is {number}")
    if whole[: len(question)] == list(question):
        return whole[len(question) :]
    return _ids(tokenizer, f" {number}")


def _ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _special_prefix(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text, such as the id that begins a sequence."""
    ids, first = tokenizer("a")["input_ids"], _ids(tokenizer, "a")[0]
    return list(ids[: ids.index(first)])
