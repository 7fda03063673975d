"""A recurrent layer's windows in two Triton kernels: the convolution, then the gated delta rule and the kept state.

`static_recurrent` computes the same in some hundred steps of PyTorch's, which solve for 64 inputs at once. Windows of a
pass are short: a few replayed inputs and a draft. So here each program takes the inputs one after the other, for one
slot, one value head and some of its columns, with their part of the state in registers. What a slot gets does not
depend on who shares its pass or on the window's length.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Triton compiles the text of its functions, and takes no annotations there but its own.

import torch
import triton
import triton.language as tl

_COLUMNS = 8
"""Columns of the state per program, at most: one warp holds 128 rows of them in registers, and waits for no other."""


def scan_slots(
    inputs: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    taps: torch.Tensor,
    bias: torch.Tensor | None,
    state: torch.Tensor,
    places: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    window: int,
    key_heads: int,
) -> torch.Tensor:
    """Convolve and scan the window of each slot: S ← e^g S + β k (v − kᵀ e^g S), out = qᵀS, q and k normalised.

    Args:
        inputs: [lines, channels], queries, keys and values before the convolution, contiguous.
        decay: g, [lines, value heads], float32, contiguous.
        beta: [lines, value heads], contiguous.
        taps: [channels, kernel], weights of the convolution, contiguous; SiLU follows it.
        bias: [channels] of the convolution, or None.
        state: [slots, value heads, key size, value size], float32, contiguous: before the window, and then after the
            first `kept` inputs of it, in place; unchanged where `kept` is 0.
        places: integers per slot: line of its first context input, line of its first gate, number of its inputs, and
            `kept`.
        window: inputs per slot, at most.
        key_heads: number of key heads; neighbouring value heads share one.

    Returns:
        [slots · window, value heads, value size], in the number type of `inputs`; 0 where a slot has no input.

    """
    slots, channels = len(places[0]), inputs.shape[1]
    _, heads, key_size, value_size = state.shape
    convolved = torch.empty(slots * window, channels, device=inputs.device)
    out = inputs.new_zeros(slots * window, heads, value_size)
    columns = min(_COLUMNS, triton.next_power_of_2(value_size))
    first_inputs, first_gates, counts, kept = places
    sizes = {"window": window, "channels": channels, "key_heads": key_heads, "heads": heads}
    sizes |= {"key_size": key_size, "value_size": value_size, "num_warps": 1}
    _convolve[(slots, window, 2 * key_heads + heads)](
        *(inputs, taps, taps if bias is None else bias, convolved, first_inputs, counts),
        kernel=taps.shape[1],
        has_bias=bias is not None,
        lines=triton.next_power_of_2(taps.shape[1]),
        width=triton.next_power_of_2(max(key_size, value_size)),
        **sizes,
    )
    _scan[(slots, heads, triton.cdiv(value_size, columns))](
        *(convolved, decay, beta, state, out, first_gates, counts, kept),
        keys=triton.next_power_of_2(key_size),
        columns=columns,
        **sizes,
    )
    return out


@triton.jit
def _convolve(
    inputs,
    taps,
    bias,
    convolved,
    first_inputs,
    counts,
    window: tl.constexpr,
    channels: tl.constexpr,
    key_heads: tl.constexpr,
    heads: tl.constexpr,  # noqa: ARG001
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    kernel: tl.constexpr,
    has_bias: tl.constexpr,
    lines: tl.constexpr,
    width: tl.constexpr,
):
    """One head of queries, keys or values at one place of a window: convolution, SiLU, and the norm of q and k.

    The convolution and SiLU are each rounded to the inputs' number type, as PyTorch does.
    """
    slot, step, head = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    if step >= tl.load(counts + slot):
        return
    is_value = head >= 2 * key_heads
    first = tl.where(is_value, 2 * key_heads * (key_size - value_size) + head * value_size, head * key_size)
    place = tl.arange(0, width)
    inside = place < tl.where(is_value, value_size, key_size)
    channel = first + place
    line = tl.arange(0, lines)[:, None]
    mask = (line < kernel) & inside
    seen = tl.load(inputs + (tl.load(first_inputs + slot) + step + line) * channels + channel, mask=mask, other=0.0)
    weights = tl.load(taps + channel * kernel + line, mask=mask, other=0.0)
    total = tl.sum(seen.to(tl.float32) * weights.to(tl.float32), 0)
    if has_bias:
        total = total + tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    total = total.to(seen.dtype).to(tl.float32)
    total = (total * tl.sigmoid(total)).to(seen.dtype).to(tl.float32)
    norm = tl.rsqrt(tl.sum(total * total, 0) + 1e-6)
    norm = tl.where(head < key_heads, norm / tl.sqrt(key_size * 1.0), norm)
    total = tl.where(is_value, total, total * norm)
    tl.store(convolved + (slot * window + step) * channels + channel, total, mask=inside)


@triton.jit
def _scan(
    convolved,
    decay,
    beta,
    state,
    out,
    first_gates,
    counts,
    kept,
    window: tl.constexpr,
    channels: tl.constexpr,
    key_heads: tl.constexpr,
    heads: tl.constexpr,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    keys: tl.constexpr,
    columns: tl.constexpr,
):
    """The inputs of one slot, one after the other, for one value head and some of its columns."""
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    key, column = tl.arange(0, keys), tl.program_id(2) * columns + tl.arange(0, columns)
    is_key, is_column = key < key_size, column < value_size
    place = state + (slot * heads + head) * key_size * value_size + key[:, None] * value_size + column
    inside = is_key[:, None] & is_column
    now = tl.load(place, mask=inside, other=0.0)
    queries = convolved + slot * window * channels + (head // (heads // key_heads)) * key_size + key
    values = convolved + slot * window * channels + 2 * key_heads * key_size + head * value_size + column
    gate = tl.load(first_gates + slot) * heads + head
    keep = tl.load(kept + slot)
    written = out + (slot * window * heads + head) * value_size + column
    for step in range(tl.load(counts + slot)):
        query = tl.load(queries, mask=is_key, other=0.0)
        keyed = tl.load(queries + key_heads * key_size, mask=is_key, other=0.0)[:, None]
        value = tl.load(values, mask=is_column, other=0.0)
        now = now * tl.exp(tl.load(decay + gate))
        now = now + keyed * (tl.load(beta + gate).to(tl.float32) * (value - tl.sum(keyed * now, 0)))
        tl.store(written, tl.sum(query[:, None] * now, 0).to(out.dtype.element_ty), mask=is_column)
        if step + 1 == keep:
            tl.store(place, now, mask=inside)
        queries += channels
        values += channels
        gate += heads
        written += heads * value_size
