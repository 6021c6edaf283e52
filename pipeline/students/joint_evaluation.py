"""A student's figures on several caches, and over the positions of all of them.

In: the evaluation on each. Out: one object with these and the figures over all: those that are
means over positions, weighted by how many there are. KL and agreement are left out where caches
hold different kinds of targets, of which they mean different things.
"""

import math
from collections.abc import Sequence
from typing import Any

_MEANS = ("loss", "accuracy")
_OF_TARGETS = ("kl", "agreement")


def joint_evaluation(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``each`` as ``caches``, and ``student`` and ``teacher`` over all their positions."""
    notes = {tuple(found["notes"][:1]) for found in each}  # of the KL, which is that of the kind
    temperatures = {found["kl_temperature"] for found in each}
    comparable = len(notes) == len(temperatures) == 1
    names = (*_MEANS, *_OF_TARGETS) if comparable else _MEANS
    return {
        "caches": list(each),
        "positions": sum(found["positions"] for found in each),
        **{who: _over_all(each, who, names) for who in ("student", "teacher")},
    }


def joint_text(joint: dict[str, Any]) -> str:
    """The figures over all caches, for people."""
    lines = [f"All {len(joint['caches'])} caches, {joint['positions']:,} scored positions:"]
    for who in ("teacher", "student"):
        figures = ", ".join(f"{name} {value:.4f}" for name, value in joint[who].items())
        lines.append(f"  {who}: {figures}")
    return "\n".join(lines)


def _over_all(each: Sequence[dict[str, Any]], who: str, names: Sequence[str]) -> dict[str, float]:
    """Means of what all of ``each`` have, and the perplexity of the mean loss."""
    total = sum(found["positions"] for found in each)
    means = {
        name: math.fsum(found[who][name] * found["positions"] for found in each) / total
        for name in names
        if all(name in found[who] for found in each)
    }
    if "loss" in means and means["loss"] < math.log(1e300):
        means["perplexity"] = math.exp(means["loss"])
    return means
