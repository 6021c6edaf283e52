"""The page of all error messages: what ``error_messages`` finds, below the headings of the page.

Each heading has a block that names packages; a message goes to the closest one that has it.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from error_messages import HOLE, Message, Source, has_words

_BLOCK = re.compile(r"^```\{error-messages\}\n([^`]+)\n```$", re.MULTILINE)
_MOST_STEPS = 4
"""Where the same words have more next steps, they are left to the message."""
_FEW_WORDS = 4


def with_messages(page: str, root: Path) -> str:
    """The page with a list of messages in place of each block."""
    source = Source(root)
    groups = [block.split() for block in _BLOCK.findall(page)]
    by_prefix = {prefix: index for index, group in enumerate(groups) for prefix in group}
    lists: list[dict[tuple[str, str], list[str]]] = [{} for _ in groups]
    for message in listed(source.messages()):
        found = max((each for each in by_prefix if _is_in(message.module, each)), key=len)
        error = message.error if message.error in source.error_classes else ""
        steps = lists[by_prefix[found]].setdefault((message.text, error), [])
        if message.next_step.strip(HOLE) and message.next_step not in steps:
            steps.append(message.next_step)
    parts = iter(lists)
    return _BLOCK.sub(lambda _: "\n".join(_item(*said) for said in next(parts).items()), page)


def listed(messages: list[Message]) -> Iterator[Message]:
    """Those with words of their own, but none that another one of its place nearly says."""
    for _, group in groupby(messages, key=lambda message: (message.module, message.line)):
        place = [message for message in group if has_words(message.text)]
        yield from (
            message
            for message in place
            if not any(_nearly_says(other.text, message.text) for other in place)
        )


def _nearly_says(general: str, special: str) -> bool:
    """Whether ``special`` is ``general`` with a few words in place of a hole."""
    pattern = ".*".join(map(re.escape, general.split(HOLE)))
    num_more = len(special.split()) - len(general.split())
    is_same = general == special or num_more > _FEW_WORDS
    return not is_same and re.fullmatch(pattern, special, re.DOTALL) is not None


def _is_in(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def _item(said: tuple[str, str], steps: list[str]) -> str:
    text, error = said
    of_class = f" ({_code(error)})" if error else ""
    told = steps if len(steps) <= _MOST_STEPS else []
    return "\n".join([f"- {_code(text)}{of_class}", *(f"  - {_code(step)}" for step in told)])


def _code(text: str) -> str:
    """As it is, in one line."""
    return f"``` {' '.join(text.split())} ```" if "`" in text else f"`{' '.join(text.split())}`"
