"""``cache-teacher --dry-run``: what would be cached, as text and as the fields of "done".

The fields: ``dry_run`` (true), ``out``, ``cache_id`` (null where it needs the teacher's weights),
``teacher`` (``directory``, ``revision``, ``parameters``, ``dtype``, ``attention``, ``vocab_size``,
``device``), ``corpus`` (``source``, ``revision``, ``files``, ``units``, null where not known), of
several instead ``corpora`` (``units`` until one ends, ``ends_first``, and ``each``: ``name``,
``weight``, ``units_of_period``, ``source``, ``revision``, ``files``),
``targets`` and ``sketch`` as in the cache's spec (null what needs the teacher's weights),
``sequence_length``, ``tokens`` (the budget), ``tokens_held``, ``shards_held``, ``tokens_to_cache``,
``bytes_per_token`` (null where nothing is held).
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.reporting.lines import short, size

if TYPE_CHECKING:
    from cache_format.metadata.spec_parts.corpus import CorpusSpec
    from stages.cache_teacher.plan import CachePlan


def plan_fields(plan: "CachePlan", out: Path | str) -> dict[str, Any]:
    """``plan`` as JSON values."""
    teacher = plan.spec.teacher
    return {
        "dry_run": True,
        "out": str(out),
        "cache_id": plan.spec.cache_id if plan.is_identity_known else None,
        "teacher": {
            "directory": str(plan.teacher_directory),
            "revision": teacher.revision or None,
            "parameters": plan.num_parameters,
            "dtype": teacher.dtype,
            "attention": teacher.attention,
            "vocab_size": teacher.vocab_size,
            "device": plan.device,
        },
        **_corpus_fields(plan),
        "targets": _target_fields(plan),
        "sketch": _sketch_fields(plan),
        "sequence_length": plan.spec.sequence_length,
        "tokens": plan.num_tokens,
        "tokens_held": plan.num_tokens_held,
        "shards_held": len(plan.held),
        "tokens_to_cache": plan.num_tokens_left,
        "bytes_per_token": plan.bytes_per_token,
    }


def plan_text(plan: "CachePlan", out: Path | str) -> str:
    """``plan`` for people; the first line is the result."""
    spec = plan.spec
    rows = {
        "cache id": spec.cache_id
        if plan.is_identity_known
        else f"unknown: {_needs_weights(plan)} the loaded teacher",
        "teacher": f"{plan.teacher_directory}, {short(plan.num_parameters)} parameters, "
        f"{spec.teacher.dtype}, attention {spec.teacher.attention}, "
        f"vocabulary {spec.teacher.vocab_size:,}, on {plan.device}",
        **_corpus_rows(plan),
        "targets": _targets(plan),
        "rows": f"{spec.sequence_length} tokens each",
        "validation": f"1 of {spec.validation_every} {spec.validation_split or 'units'}, "
        f"{1 / spec.validation_every:.1%}",
        "held": f"{short(plan.num_tokens_held)} tokens in {len(plan.held)} shards",
        "size": _size(plan),
        **({"note": "; ".join(plan.notes)} if plan.notes else {}),
    }
    first = (
        f"{short(plan.num_tokens_left)} more tokens would be cached in {out}, up to the budget of "
        f"{short(plan.num_tokens)} or the end of the corpus. Nothing was written."
        if plan.num_tokens_left
        else f"{out} holds the budget of {short(plan.num_tokens)} tokens: nothing to do."
    )
    return "\n".join([first, *(f"  {name:11} {text}" for name, text in rows.items())])


def _corpus_fields(plan: "CachePlan") -> dict[str, Any]:
    def of(corpus: "CorpusSpec") -> dict[str, Any]:
        return {
            "source": corpus.source,
            "revision": corpus.revision or None,
            "files": len(corpus.files),
        }

    if plan.spec.corpora is None:
        return {"corpus": of(plan.spec.sole_corpus) | {"units": plan.num_units}}
    each = [
        {"name": share.name, "weight": share.weight, "units_of_period": share.units}
        | of(share.corpus)
        for share in plan.spec.corpora
    ]
    ends_first = None if plan.ends_first is None else plan.ends_first[0]
    return {"corpora": {"units": plan.num_units, "ends_first": ends_first, "each": each}}


def _corpus_rows(plan: "CachePlan") -> dict[str, str]:
    """The corpus, or each of several and where the cache would end."""
    units = "units not counted yet" if plan.num_units is None else f"{plan.num_units:,} units"
    if plan.spec.corpora is None:
        return {"corpus": _corpus(plan.spec.sole_corpus, units)}
    period = sum(share.units for share in plan.spec.corpora)
    rows = {
        f"corpus {share.name}": f"{share.weight:.1%} of the tokens: "
        f"{_corpus(share.corpus, f'{share.units:,} of {period:,} units, each')}"
        for share in plan.spec.corpora
    }
    if plan.ends_first is not None:
        name, num_units = plan.ends_first
        rows["corpora"] = f"{units}, until {name} ends, which has {num_units:,}"
    return rows


def _corpus(corpus: "CorpusSpec", units: str) -> str:
    where = f"{corpus.source} at {corpus.revision}" if corpus.revision else "local"
    of_what = "documents"
    if corpus.chat is not None:
        of_what = f"conversations, of which is learned: {corpus.chat.train_on}"
    return (
        f"{where}, files: {len(corpus.files):,}, {units} of {corpus.documents_per_unit} {of_what}"
    )


def _targets(plan: "CachePlan") -> str:
    from cache_format.codec.targets.kinds import kind_of

    targets, sketch = plan.spec.targets, plan.spec.sketch
    kind = kind_of(plan.spec).title(targets)
    if targets.hidden is not None and not plan.is_identity_known:
        ids = "" if targets.kept is None else f", {targets.kept.top_k} ids"
        kl = f"states with a KL of {targets.hidden.max_kl:g} nats to the teacher at T = 1"
        kind = f"{targets.kind}{ids}, {kl}"
    nodes = ", ".join(f"{1 / node:g}" for node in targets.inverse_temperatures)
    temperatures = f"temperatures {nodes}" if nodes else "any temperature"
    hidden = "none" if sketch.kind == "none" else f"{sketch.kind}, {sketch.dim} {sketch.dtype}"
    return f"{kind}; {temperatures}; hidden states: {hidden}"


def _needs_weights(plan: "CachePlan") -> str:
    """What is fitted, with its verb."""
    targets = plan.spec.targets
    if targets.hidden is not None:
        return f"the transform of hidden states (targets={targets.kind}) needs"
    if targets.moment is not None:
        return f"the basis of the tail's moments (tail_moment_dim={targets.moment.dim}) needs"
    return "principal components (hidden_projection=pca) need"


def _target_fields(plan: "CachePlan") -> dict[str, Any]:
    fields = asdict(plan.spec.targets)
    if plan.spec.targets.hidden is not None and not plan.is_identity_known:
        found = dict.fromkeys(fields["hidden"])
        fields["hidden"] = found | {"max_kl": plan.spec.targets.hidden.max_kl}
    if plan.spec.targets.moment is not None and not plan.is_identity_known:
        found = dict.fromkeys(fields["moment"])
        fields["moment"] = found | {"dim": plan.spec.targets.moment.dim}
    return fields


def _sketch_fields(plan: "CachePlan") -> dict[str, Any]:
    fields = asdict(plan.spec.sketch)
    return fields if plan.is_identity_known else fields | {"projection_sha256": None}


def _size(plan: "CachePlan") -> str:
    if plan.bytes_per_token is None:
        return "unknown until something is cached: `pipeline estimate` measures it"
    more = size(plan.bytes_per_token * plan.num_tokens_left)
    return f"{plan.bytes_per_token:.1f} bytes/token so far, about {more} more"
