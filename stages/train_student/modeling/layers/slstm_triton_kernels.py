# mypy: disallow-untyped-decorators=False
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""The sLSTM recurrence as two Triton kernels, one launch each for all positions of a batch.

In: gate pre-activations or what the forward pass kept of them. Out: what is kept, or gradients by
the pre-activations. Launched by ``slstm_triton``.

A program owns a few rows of one head and walks through all positions, h and l in registers. It
needs no other program, so nothing waits across the GPU. The recurrent product is a sum of float32
products in float32, without TF32 anywhere, as errors of a recurrence add up. ``tl.dot`` would pad
so few rows to 16, and would carry the whole matrix through shared memory at every position. Here
each thread reads its own columns of the matrix anew at every position, straight into registers;
the reads are marked to stay in the L1 cache, where a head's matrix of 16·H² bytes fits at the
paper's width of 96 (147 kB).

y of a position is written to memory, and after a barrier the program reads it back as an operand
of the next product: Triton cannot index rows of registers. The same goes for the gradients.

Only what is built into Triton's language is used, none of its own jitted functions, so that its
interpreter can run this even where Triton was imported before the interpreter was asked for.

Shapes: T positions, N heads, B batch, H width of a head. Within kernels R rows of a program, K four
entries of the summed dimension, L lanes (H padded to a power of two), C = 4·L columns, G four gates
or four entries summed over.
"""

import triton
import triton.language as tl


@triton.jit
def _quarters(x):
    """The four parts of a last dimension of 4."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1], 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _sigmoid(x):
    """σ(x), and log(1 + exp(−|x|)), exact to float32 also where it is small (Kahan's log1p)."""
    e = tl.exp(-tl.abs(x))
    denominator = 1.0 + e
    lost = denominator - 1.0
    log1p = tl.where(lost == 0.0, e, tl.log(denominator) * (e / tl.where(lost == 0.0, 1.0, lost)))
    return tl.where(x >= 0.0, 1.0, e) / denominator, log1p


@triton.jit(do_not_specialize=["num_steps", "batch"])
def slstm_forward_kernel(
    gates_ptr,
    matrix_ptr,
    is_start_ptr,
    log_n_ptr,
    acts_ptr,
    y_ptr,
    h_ptr,
    num_steps,
    batch,
    width: tl.constexpr,
    rows: tl.constexpr,
    lanes: tl.constexpr,
    unrolled: tl.constexpr,
    has_resets: tl.constexpr,
):
    """``matrix`` [N, H, H, G]: a thread then holds all four gates of an output."""
    head, num_heads = tl.program_id(0), tl.num_programs(0)
    row_R = tl.program_id(1) * rows + tl.arange(0, rows)
    lane_L, column_C = tl.arange(0, lanes), tl.arange(0, 4 * lanes)
    is_row_R = row_R < batch
    is_cell_RL = is_row_R[:, None] & (lane_L < width)[None, :]
    first_R = (head * batch + row_R) * width
    cell_RL = first_R[:, None] + lane_L[None, :]
    gate_RL = 4 * first_R[:, None] + lane_L[None, :]
    step_cells = num_heads * batch * width
    matrix_ptr += head * width * 4 * width

    h = tl.load(h_ptr + cell_RL, mask=is_cell_RL, other=0.0)
    log_n = tl.load(log_n_ptr + cell_RL, mask=is_cell_RL, other=0.0)
    is_fed_R = is_row_R
    for _ in range(num_steps):
        if has_resets:
            is_start_R = tl.load(is_start_ptr + row_R, mask=is_row_R, other=0) != 0
            is_fed_R = is_row_R & (is_start_R == 0)
            log_n = tl.where(is_start_R[:, None], float("-inf"), log_n)
            is_start_ptr += batch
        i = tl.load(gates_ptr + gate_RL, mask=is_cell_RL, other=0.0)
        f = tl.load(gates_ptr + gate_RL + width, mask=is_cell_RL, other=0.0)
        z = tl.load(gates_ptr + gate_RL + 2 * width, mask=is_cell_RL, other=0.0)
        o = tl.load(gates_ptr + gate_RL + 3 * width, mask=is_cell_RL, other=0.0)

        sum_RKC = tl.full([rows, 4, 4 * lanes], 0.0, tl.float32)
        for first_k in range(0, width, 4 * unrolled):
            for turn in tl.static_range(unrolled):
                k_K = first_k + 4 * turn + tl.arange(0, 4)
                y_RK = tl.load(
                    y_ptr + first_R[:, None] + k_K[None, :],
                    mask=is_fed_R[:, None] & (k_K < width)[None, :],
                    other=0.0,
                )
                matrix_1KC = tl.load(
                    matrix_ptr + k_K[None, :, None] * (4 * width) + column_C[None, None, :],
                    mask=(k_K < width)[None, :, None] & (column_C < 4 * width)[None, None, :],
                    other=0.0,
                    eviction_policy="evict_last",
                )
                sum_RKC += y_RK[:, :, None] * matrix_1KC
        k0, k1, k2, k3 = _quarters(tl.permute(sum_RKC, [0, 2, 1]))
        sum_RC = (k0 + k1) + (k2 + k3)
        from_y_i, from_y_f, from_y_z, from_y_o = _quarters(tl.reshape(sum_RC, [rows, lanes, 4]))

        i += from_y_i
        f += from_y_f
        _, log1p_f = _sigmoid(f)
        log_kept = log_n + tl.minimum(f, 0.0) - log1p_f
        a, log1p_a = _sigmoid(log_kept - i)
        log_n = tl.maximum(log_kept, i) + log1p_a
        half_z, _ = _sigmoid(2.0 * (z + from_y_z))
        z = 2.0 * half_z - 1.0
        o, _ = _sigmoid(o + from_y_o)
        h = z + a * (h - z)

        tl.store(acts_ptr + gate_RL, a, mask=is_cell_RL)
        tl.store(acts_ptr + gate_RL + width, f, mask=is_cell_RL)
        tl.store(acts_ptr + gate_RL + 2 * width, z, mask=is_cell_RL)
        tl.store(acts_ptr + gate_RL + 3 * width, o, mask=is_cell_RL)
        gates_ptr += 4 * step_cells
        acts_ptr += 4 * step_cells
        y_ptr += step_cells
        h_ptr += step_cells
        tl.store(h_ptr + cell_RL, h, mask=is_cell_RL)
        tl.store(y_ptr + cell_RL, o * h, mask=is_cell_RL)
        tl.debug_barrier()
    tl.store(log_n_ptr + cell_RL, log_n, mask=is_cell_RL)


@triton.jit(do_not_specialize=["num_steps", "batch"])
def slstm_backward_kernel(
    grad_y_ptr,
    matrix_ptr,
    is_start_ptr,
    acts_ptr,
    h_ptr,
    h_last_ptr,
    grad_ptr,
    num_steps,
    batch,
    width: tl.constexpr,
    rows: tl.constexpr,
    lanes: tl.constexpr,
    unrolled: tl.constexpr,
    has_resets: tl.constexpr,
):
    """``matrix`` [N, H, H, 4]: the G·H summed over in groups of four, each before the H outputs.

    ``h_last``, ``matrix`` and ``num_steps`` apart, arguments point at the last step and walk back.
    """
    head, num_heads = tl.program_id(0), tl.num_programs(0)
    row_R = tl.program_id(1) * rows + tl.arange(0, rows)
    lane_L, four_G = tl.arange(0, lanes), tl.arange(0, 4)
    column_1LG = 4 * lane_L[None, :, None] + four_G[None, None, :]
    is_row_R = row_R < batch
    is_cell_RL = is_row_R[:, None] & (lane_L < width)[None, :]
    first_R = (head * batch + row_R) * width
    cell_RL = first_R[:, None] + lane_L[None, :]
    gate_RL = 4 * first_R[:, None] + lane_L[None, :]
    step_cells = num_heads * batch * width
    matrix_ptr += head * 4 * width * width

    h_next = tl.load(h_last_ptr + cell_RL, mask=is_cell_RL, other=0.0)
    dy_from_next = tl.full([rows, lanes], 0.0, tl.float32)
    dh_from_next = tl.full([rows, lanes], 0.0, tl.float32)
    d_log_n = tl.full([rows, lanes], 0.0, tl.float32)
    is_fed_R = is_row_R
    for _ in range(num_steps):
        a = tl.load(acts_ptr + gate_RL, mask=is_cell_RL, other=0.0)
        f = tl.load(acts_ptr + gate_RL + width, mask=is_cell_RL, other=0.0)
        z = tl.load(acts_ptr + gate_RL + 2 * width, mask=is_cell_RL, other=0.0)
        o = tl.load(acts_ptr + gate_RL + 3 * width, mask=is_cell_RL, other=0.0)
        h = tl.load(h_ptr + cell_RL, mask=is_cell_RL, other=0.0)
        dy = dy_from_next + tl.load(grad_y_ptr + cell_RL, mask=is_cell_RL, other=0.0)

        dh = dh_from_next + dy * o
        d_log_kept = a * d_log_n + dh * (h - z) * a * (1.0 - a)
        shut_f, _ = _sigmoid(-f)
        tl.store(grad_ptr + gate_RL, d_log_n - d_log_kept, mask=is_cell_RL)
        tl.store(grad_ptr + gate_RL + width, d_log_kept * shut_f, mask=is_cell_RL)
        tl.store(grad_ptr + gate_RL + 2 * width, dh * (1.0 - a) * (1.0 - z * z), mask=is_cell_RL)
        tl.store(grad_ptr + gate_RL + 3 * width, dy * h_next * o * (1.0 - o), mask=is_cell_RL)
        tl.debug_barrier()
        dh_from_next = a * dh
        d_log_n = d_log_kept
        h_next = h

        if has_resets:
            is_start_R = tl.load(is_start_ptr + row_R, mask=is_row_R, other=0) != 0
            is_fed_R = is_row_R & (is_start_R == 0)
            is_start_ptr -= batch
        sum_RLG = tl.full([rows, lanes, 4], 0.0, tl.float32)
        for first_j in range(0, width, unrolled):
            for turn in tl.static_range(unrolled):
                j = first_j + turn
                k_G = 4 * j + four_G
                grad_RG = tl.load(
                    grad_ptr + 4 * first_R[:, None] + k_G[None, :],
                    mask=is_fed_R[:, None] & (k_G < 4 * width)[None, :],
                    other=0.0,
                )
                matrix_1LG = tl.load(
                    matrix_ptr + j * (4 * width) + column_1LG,
                    mask=(column_1LG < 4 * width) & (k_G < 4 * width)[None, None, :],
                    other=0.0,
                    eviction_policy="evict_last",
                )
                sum_RLG += grad_RG[:, None, :] * matrix_1LG
        k0, k1, k2, k3 = _quarters(sum_RLG)
        dy_from_next = (k0 + k1) + (k2 + k3)
        acts_ptr -= 4 * step_cells
        grad_ptr -= 4 * step_cells
        grad_y_ptr -= step_cells
        h_ptr -= step_cells
