"""What each kind of target keeps of a teacher's distribution, and at what size.

Rows are made by stage one, and pass through the codec; bytes are those of the targets' columns. A
kind's ``self_kl`` is KL(teacher ‖ cache), see ``pipeline.comparison``, a mean over positions that
what was fitted has not seen. It is None at temperatures that a cache does not hold.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.positions import make_spec
from benchmarks.progress import Done, quiet
from cache_format.metadata.spec_parts.targets import KL_TEMPERATURES
from cache_format.tables.vocabulary_ranks import RankTable
from pipeline.comparison.compared import COMPARED, LEVELS, with_settings
from pipeline.comparison.kept_rows import Keeping
from pipeline.comparison.teacher_rows import TeacherRows
from pipeline.reports.comparison_report import temperature_key
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.packing import PackedUnit
from stages.cache_teacher.teacher.teacher import Teacher

SETTINGS = COMPARED
_MEASURED_ROWS = 8
"""At most, and no more than half: what is fitted is fitted to the others."""
_POSITIONS = 512
"""That the KL is measured at."""
_BASE = CacheTeacherConfig(hidden_projection="none", head_chunk=256, compile="off")
_KEYS = [f"self_kl_{temperature_key(temperature)}" for temperature in KL_TEMPERATURES]


def measure_kinds(
    teacher: Teacher,
    packed: PackedUnit,
    ranks: RankTable,
    compared: Sequence[Mapping[str, Any]] = SETTINGS,
    done: Done = quiet,
) -> Iterator[dict[str, Any]]:
    """Settings, size and KL of each kind in ``compared``."""
    num_rows = len(packed.token_ids_RT)
    num_fit = num_rows - min(_MEASURED_ROWS, num_rows // 2)
    source = rows_of(teacher, packed.rows(0, num_fit), ranks)
    shown, head_VD = source.show(packed.rows(num_fit, num_rows)), teacher.head.weight_VD.float()
    for settings in compared:
        kept = Keeping.fitted(source, with_settings(_BASE, settings)).rows(shown)
        found = kept.self_kl(head_VD, _POSITIONS)
        yield {
            "kind": settings["targets"],
            "settings": {key: value for key, value in settings.items() if key != "targets"},
            "bytes_per_token": round(kept.bytes_per_token, 1),
            **{
                key: None if kl is None else round(kl, 4)
                for key, kl in zip(_KEYS, found, strict=True)
            },
        }
        done(f"size and KL of {settings['targets']}")


def rows_of(teacher: Teacher, first_unit: PackedUnit, ranks: RankTable) -> TeacherRows:
    """Rows of ``teacher``; what is fitted is fitted to ``first_unit``."""
    return TeacherRows(teacher, first_unit, ranks, make_spec(min(LEVELS), ranks).sole_corpus)


def kinds_table(kinds: list[dict[str, Any]]) -> Iterator[str]:
    """``measure_kinds`` for people."""
    yield "KL(teacher ‖ cache) over the whole vocabulary, nats, at T ="
    yield f"{'kind':14}{'settings':28}{'B/token':>9}" + "".join(
        f"{temperature:>9g}" for temperature in KL_TEMPERATURES
    )
    for row in kinds:
        settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
        found = (row[key] for key in _KEYS)
        yield f"{row['kind']:14}{settings:28}{row['bytes_per_token']:>9}" + "".join(
            f"{'' if kl is None else kl:>9}" for kl in found
        )
