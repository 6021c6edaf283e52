"""Which caches one student can learn from: those that say the same things of the same teacher.

In: a mixture and what the loss needs. Out: nothing, or an error that names the caches and what
differs. Only manifests and lists of files are read.
"""

from collections.abc import Iterator

from cache_format.reader import Cache
from stages.model_files.tokenizer_files import READ_FILES
from stages.train_student.data.mixture import CacheMixture
from stages.train_student.data.requirements import CacheNeeds

_TEACHER = (
    *("weights_sha256", "tokenizer_sha256", "dtype", "hidden_size", "num_layers", "vocab_size"),
    *("head_rows", "eos_token_id"),
)
_FILES = ("embedding.safetensors", *READ_FILES)


def require_mixable(mixture: CacheMixture, needs: CacheNeeds) -> None:
    """Raise ValueError where caches differ in what a student or its loss relies on.

    Corpora, splits, seeds, and what is fitted to a cache's own rows in order to store them in few
    bytes (frequencies of ids, transforms of hidden states) may differ.
    """
    first = mixture.caches[0]
    for other in mixture.caches[1:]:
        differing = [
            f"{name} is {ours!r} and {theirs!r}"
            for (name, ours), (_, theirs) in zip(
                _relied_on(first, needs), _relied_on(other, needs), strict=True
            )
            if ours != theirs
        ]
        if differing:
            raise ValueError(
                f"{first.path} and {other.path}: one student cannot learn from both: "
                f"{'; '.join(differing)}. Make the caches with the same teacher and settings, or "
                "train on one of them."
            )


def _relied_on(cache: Cache, needs: CacheNeeds) -> Iterator[tuple[str, object]]:
    """What caches that are mixed must have in common, by the names that a recipe has for it."""
    spec = cache.spec
    yield from ((f"teacher.{name}", getattr(spec.teacher, name)) for name in _TEACHER)
    files = cache.attachments()
    for name in _FILES:
        yield f"the SHA-256 of teacher/{name}", files[name][1] if name in files else None
    yield "cache_teacher.sequence_length", spec.sequence_length
    yield "cache_teacher.targets", spec.targets.kind
    kept, draws, moment = spec.targets.kept, spec.targets.draws, spec.targets.moment
    yield "cache_teacher.top_k", kept and kept.top_k
    yield "cache_teacher.top_p", kept and kept.keep_mass
    yield "cache_teacher.inverse_temperatures", kept and kept.inverse_temperatures
    yield "cache_teacher.num_samples", draws and draws.num_draws
    yield "cache_teacher.sampling_temperature", draws and 1 / draws.inverse_temperature
    # The loss computes with these, not only with what is decoded by them.
    yield "cache_teacher.tail_moment_dim", moment and moment.dim
    yield "the SHA-256 of the transform of moments", moment and moment.transform_sha256
    if needs.reads_sketch:
        yield "cache_teacher.hidden_projection", spec.sketch.kind
        yield "cache_teacher.hidden_states", spec.sketch.hidden_states
        yield "cache_teacher.hidden_projection_dim", spec.sketch.dim
        yield "the SHA-256 of the projection", spec.sketch.projection_sha256
