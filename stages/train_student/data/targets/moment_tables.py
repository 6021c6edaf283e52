"""The tables that the moments of a cache's tails are rebuilt with, on the device of a run.

V vocabulary, D width, d basis, e = d + 1, n nodes, J components.
"""

import torch
from torch import Tensor

from cache_format.reader import Cache
from cache_format.tables.tail_moment import MomentTransform
from stages.train_student.data.targets.kind import HeadOnDevice
from stages.train_student.data.targets.tail_moment import MomentTables
from stages.train_student.data.teacher_files import teacher_head


def moment_tables(cache: Cache, head: HeadOnDevice) -> MomentTables | None:
    """The tables of ``cache``; None if it has no moments, or the student's head is not frozen and
    the teacher's own: then moments say nothing of its logits."""
    if cache.moment is None:
        return None
    head_VD = head.place(teacher_head(cache))
    if head_VD is not head.frozen_VD:
        return None
    return tables_of(cache.moment, cache.spec.targets.inverse_temperatures, head_VD)


def tables_of(
    moment: MomentTransform, inverse_temperatures: tuple[float, ...], head_VD: Tensor
) -> MomentTables:
    """The tables of ``moment`` for a head, on its device."""
    basis_dD, center_e, mean_U, synthesis_JU = (
        torch.from_numpy(array.copy()).to(head_VD.device)
        for array in (
            moment.basis,
            moment.center,
            moment.transform.mean,
            moment.transform.synthesis,
        )
    )
    num_nodes, num_numbers = len(inverse_temperatures), len(center_e)
    return MomentTables(
        basis_dD=basis_dD,
        table_Vd=head_VD.float() @ basis_dD.T - center_e[:-1],
        entropy_center=center_e[-1],
        synthesis_Jne=synthesis_JU.view(-1, num_nodes, num_numbers),
        mean_ne=mean_U.view(num_nodes, num_numbers),
        inverse_temperatures=inverse_temperatures,
    )


def require_teachers_head(cache: Cache, head_VD: Tensor | None) -> None:
    """Raise ValueError where ``cache`` has moments, and the student's head, None if it is trained,
    is not the teacher's."""
    if cache.moment is None:
        return
    if head_VD is not None:
        theirs_VD = teacher_head(cache).to(head_VD.device, head_VD.dtype)
        if torch.equal(theirs_VD, head_VD):
            return
    raise ValueError(
        f"{cache.path}: the cache holds the moments of its teacher's tails, which only say "
        "something to a student with a frozen copy of the teacher's head, and this student's head "
        "is another. Train another student, or make a cache with cache_teacher.tail_moment_dim 0."
    )
