"""A recurrent layer's windows in one Triton kernel: convolution, gated delta rule, and the state that is kept.

`static_recurrent` computes the same in some hundred steps of PyTorch's, which solve for 64 inputs at once. Windows of a
pass are short: a few replayed inputs and a draft. So here each program takes the inputs one after the other, for one
slot, one value head and some of its columns, with their part of the state in registers. Inputs, gates and state are
read once, and what a slot gets does not depend on who shares its pass or on the window's length.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Triton compiles the text of its functions, and takes no annotations there but its own.

import torch
import triton
import triton.language as tl

_COLUMNS = 32
"""Columns of the state per program, at most: 128 rows of them fit a program's registers."""


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
    slots = len(places[0])
    _, heads, key_size, value_size = state.shape
    out = inputs.new_zeros(slots * window, heads, value_size)
    columns = min(_COLUMNS, triton.next_power_of_2(value_size))
    _scan[(slots, heads, triton.cdiv(value_size, columns))](
        *(inputs, decay, beta, taps, taps if bias is None else bias, state, out, *places),
        window=window,
        channels=inputs.shape[1],
        key_heads=key_heads,
        heads=heads,
        key_size=key_size,
        value_size=value_size,
        kernel=taps.shape[1],
        has_bias=bias is not None,
        keys=triton.next_power_of_2(key_size),
        columns=columns,
        lines=triton.next_power_of_2(taps.shape[1]),
    )
    return out


@triton.jit
def _scan(
    inputs,
    decay,
    beta,
    taps,
    bias,
    state,
    out,
    first_inputs,
    first_gates,
    counts,
    kept,
    window: tl.constexpr,
    channels: tl.constexpr,
    key_heads: tl.constexpr,
    heads: tl.constexpr,
    key_size: tl.constexpr,
    value_size: tl.constexpr,
    kernel: tl.constexpr,
    has_bias: tl.constexpr,
    keys: tl.constexpr,
    columns: tl.constexpr,
    lines: tl.constexpr,
):
    slot, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    key, column = tl.arange(0, keys), tl.program_id(2) * columns + tl.arange(0, columns)
    is_key, is_column = key < key_size, column < value_size
    query_channel = (head // (heads // key_heads)) * key_size + key
    key_channel = key_heads * key_size + query_channel
    value_channel = 2 * key_heads * key_size + head * value_size + column
    line, is_line = tl.arange(0, lines)[:, None], tl.arange(0, lines)[:, None] < kernel
    of_query = tl.load(taps + query_channel * kernel + line, mask=is_line & is_key, other=0.0).to(tl.float32)
    of_key = tl.load(taps + key_channel * kernel + line, mask=is_line & is_key, other=0.0).to(tl.float32)
    of_value = tl.load(taps + value_channel * kernel + line, mask=is_line & is_column, other=0.0).to(tl.float32)
    place = state + (slot * heads + head) * key_size * value_size + key[:, None] * value_size + column
    inside = is_key[:, None] & is_column
    now = tl.load(place, mask=inside, other=0.0)
    row = inputs + tl.load(first_inputs + slot) * channels + line * channels
    gate = tl.load(first_gates + slot) * heads + head
    keep = tl.load(kept + slot)
    written = out + (slot * window * heads + head) * value_size + column
    for step in range(tl.load(counts + slot)):
        query = _convolved(row + query_channel, is_line & is_key, of_query, bias + query_channel, is_key, has_bias)
        keyed = _convolved(row + key_channel, is_line & is_key, of_key, bias + key_channel, is_key, has_bias)
        value = _convolved(
            row + value_channel, is_line & is_column, of_value, bias + value_channel, is_column, has_bias
        )
        query = query * tl.rsqrt(tl.sum(query * query, 0) + 1e-6) * (1.0 / tl.sqrt(key_size * 1.0))
        keyed = keyed * tl.rsqrt(tl.sum(keyed * keyed, 0) + 1e-6)
        now = now * tl.exp(tl.load(decay + gate))
        change = tl.load(beta + gate).to(tl.float32) * (value - tl.sum(keyed[:, None] * now, 0))
        now = now + keyed[:, None] * change
        tl.store(written, tl.sum(query[:, None] * now, 0).to(out.dtype.element_ty), mask=is_column)
        if step + 1 == keep:
            tl.store(place, now, mask=inside)
        row += channels
        gate += heads
        written += heads * value_size


@triton.jit
def _convolved(places, inside, taps, bias, is_channel, has_bias: tl.constexpr):
    """A position's inputs after the convolution and SiLU, each rounded to the inputs' number type as PyTorch does."""
    seen = tl.load(places, mask=inside, other=0.0)
    total = tl.sum(seen.to(tl.float32) * taps, 0)
    if has_bias:
        total = total + tl.load(bias, mask=is_channel, other=0.0).to(tl.float32)
    total = total.to(seen.dtype).to(tl.float32)
    return (total * tl.sigmoid(total)).to(seen.dtype).to(tl.float32)
