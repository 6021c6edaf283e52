"""The sLSTM recurrence over a sequence, with its own backward through time.

In: gate pre-activations of all positions (biases included) and the recurrent matrices. Out: the
hidden states of all positions and the state after the last. ``slstm_backend`` says what runs it on
a device.

The package's cell (Beck et al., arXiv 2405.04517, eq. 8-17) keeps c, n and a stabiliser m:
    c' = f·c + i·z,   n' = f·n + i,   y = o·c'/n',   i and f scaled by exp(−m'),
which is a weighted mean. With h = c/n and l = m + log n, the log of the unscaled normaliser,
    l' = logaddexp(l + log σ(f̃), ĩ),   a = exp(l + log σ(f̃) − l'),
    h' = a·h + (1 − a)·z,   y = o·h'
says the same in two states and without a stabiliser: y does not depend on m, so neither do its
gradients. The empty state is l = −∞, which makes a = 0, and so no gradient passes into a state that
a document start has wiped; only the recurrent y needs a mask of its own.

Shapes: T positions, N heads, B batch, G the gates in the package's order i, f, z, o, H width of a
head.
"""

from torch import Tensor

from stages.train_student.modeling.layers.slstm_autograd import Resets, ScanState, empty_state
from stages.train_student.modeling.layers.slstm_backend import chosen_scan

__all__ = ["Resets", "ScanState", "empty_state", "slstm_scan"]


def slstm_scan(
    gates_TNBGH: Tensor, recurrent_NHGH: Tensor, state: ScanState | None, resets: Resets | None
) -> tuple[Tensor, ScanState]:
    """Hidden states y [T, N, B, H] and the state after the last position.

    ``gates_TNBGH`` [T, N, B, 4, H] are pre-activations, ``recurrent_NHGH`` [N, H, 4·H] is applied
    to the previous y. Without ``state`` the first position starts afresh. No gradient flows into or
    out of states. Not cast under autocast: pass float32 or float64.
    """
    _, num_heads, _, _, width = gates_TNBGH.shape
    scan = chosen_scan(gates_TNBGH.device, num_heads, width)
    return scan(gates_TNBGH, recurrent_NHGH, state, resets)
