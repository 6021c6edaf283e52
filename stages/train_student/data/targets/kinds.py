"""The kinds of target by the name that a spec has for them. A new one is registered here."""

from collections.abc import Mapping

from cache_format.metadata.spec_parts.targets import TargetSpec
from stages.train_student.data.targets import hidden, sampled, top_k, top_k_hidden, top_k_sampled
from stages.train_student.data.targets.kind import TargetKind

TARGET_KINDS: Mapping[str, TargetKind] = {
    "top_k": top_k,
    "sampled": sampled,
    "top_k+sampled": top_k_sampled,
    "hidden": hidden,
    "top_k+hidden": top_k_hidden,
}


def kind_of(spec: TargetSpec) -> TargetKind:
    """The kind of these targets."""
    return TARGET_KINDS[spec.kind]


def kl_note(spec: TargetSpec) -> str:
    """What the KL of a student is with these targets, for people."""
    note = kind_of(spec).KL_NOTE
    if spec.moment is None:
        return note
    return (
        f"{note} For a student whose head is the teacher's and frozen, it is over the full "
        f"vocabulary as far as the {spec.moment.dim} directions of the tail's moment tell; do not "
        "compare it with that of a student with another head."
    )
