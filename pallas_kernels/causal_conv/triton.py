# mypy: disallow-untyped-defs=False, disable-error-code=assignment
"""causal_conv in Triton: one kernel, a program per tile of one row's tokens and block of channels.

A row's state is read by the row's first tile alone, which therefore can also write it: the last inputs are there from
the beginning. What has to move is x and y, and in a decode the state twice. Of Mamba2-2.7B, 5376 channels of 4 taps in
bfloat16, at 4.3 TB/s: decode of 64 rows 5.5 MB, 1.3 us, of 256 rows 22 MB, 5.1 us; 8192 tokens 176 MB, 41 us.
"""

import jax
import jax_triton
import triton
import triton.language as tl

from pallas_kernels import tuning
from pallas_kernels.recurrent import entries, tiles


def causal_conv(
    x: jax.Array,
    states: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    index: jax.Array,
    query_start: jax.Array,
    fresh: jax.Array,
    *,
    activation: str | None,
    decode: bool,
) -> tuple[jax.Array, jax.Array]:
    """See pallas_kernels.causal_conv."""
    tokens, channels = x.shape
    taps = weight.shape[1]
    defaults = {"tokens": 1, "channels": 256, "warps": 2} if decode else {"tokens": 16, "channels": 256, "warps": 4}
    config = tuning.config("causal_conv", "decode" if decode else "extend", defaults, taps=taps, bytes=x.dtype.itemsize)
    size = config["tokens"]
    if not decode and size < taps - 1:  # the second tile would need the state too
        raise NotImplementedError(f"{taps} taps are over a tile's {size} tokens")
    work = entries(index, fresh) if decode else tiles(index, query_start, fresh, tokens, size)[0]
    states_ref = jax.new_ref(states)
    y = jax_triton.triton_call(
        states_ref,
        x,
        weight,
        weight if bias is None else bias,
        work,
        kernel=_causal_conv_kernel,
        out_type=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(-(-channels // config["channels"]), work.shape[0]),
        name="causal_conv",
        num_warps=config["warps"],
        DECODE=decode,
        BIAS=bias is not None,
        SILU=activation == "silu",
        CHANNELS=channels,
        TAPS=taps,
        TOKENS=size,
        BLOCK=config["channels"],
    )
    return y, jax.freeze(states_ref)


@triton.jit
def _causal_conv_kernel(
    states_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    work_ptr,
    y_ptr,
    DECODE: tl.constexpr,
    BIAS: tl.constexpr,
    SILU: tl.constexpr,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK channels of a tile. states: [N, CHANNELS, TAPS - 1]; x, y: [T, CHANNELS]; weight: [CHANNELS, TAPS]."""
    LAST: tl.constexpr = TAPS - 1
    tile = tl.program_id(1)
    if DECODE:
        begin, held, place, count = tile, 1, 0, 1
        entry = tl.load(work_ptr + tile)
    else:
        begin = tl.load(work_ptr + tile * 5)
        held = tl.load(work_ptr + tile * 5 + 1)
        place = tl.load(work_ptr + tile * 5 + 2)
        count = tl.load(work_ptr + tile * 5 + 3)
        entry = tl.load(work_ptr + tile * 5 + 4)
        if held == 0:
            return
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    token = tl.arange(0, TOKENS)
    mask = (token < held)[:, None] & inside[None, :]
    real = mask & (count > 0)
    x_ptrs = x_ptr + (begin.to(tl.int64) + token)[:, None] * CHANNELS + channel[None, :]
    y = tl.zeros([TOKENS, BLOCK], tl.float32)
    if BIAS:
        y += tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(TAPS):
        # The input `LAST - tap` tokens back: of the first tile's first tokens, before the row's tokens begin.
        known = real & (token >= LAST - tap - place)[:, None]
        x = tl.load(x_ptrs - (LAST - tap) * CHANNELS, mask=known, other=0.0)
        weight = tl.load(weight_ptr + channel * TAPS + tap, mask=inside, other=0.0)
        y += x.to(tl.float32) * weight.to(tl.float32)[None, :]
    if (place == 0) & (count > 0):
        kept = inside & (entry >= 0)
        own = tl.where(entry < 0, ~entry, entry).to(tl.int64)
        state_ptrs = states_ptr + (own * CHANNELS + channel) * LAST
        for slot in tl.static_range(LAST):
            state = tl.load(state_ptrs + slot, mask=kept, other=0.0).to(tl.float32)
            for tap in tl.static_range(slot + 1):
                if slot - tap < TOKENS:  # the token that finds this input under the tap
                    factor = tl.load(weight_ptr + channel * TAPS + tap, mask=inside, other=0.0).to(tl.float32)
                    y += tl.where(token == slot - tap, 1.0, 0.0)[:, None] * (state * factor)[None, :]
        # Each slot takes an input of this step or, where the row is shorter than the state, a later slot's.
        row_ptrs = x_ptr + (begin.to(tl.int64) + count - LAST) * CHANNELS + channel
        after = ()
        for slot in tl.static_range(LAST):
            taken = count + slot >= LAST
            new = tl.load(row_ptrs + slot * CHANNELS, mask=inside & taken, other=0.0).to(states_ptr.dtype.element_ty)
            old = tl.load(state_ptrs + slot + count, mask=kept & (count + slot < LAST), other=0.0)
            after += (tl.where(taken, new, old),)
        tl.debug_barrier()  # nobody writes before all have read
        for slot in tl.static_range(LAST):
            tl.store(state_ptrs + slot, after[slot], mask=inside)
    if SILU:
        y *= tl.sigmoid(y)
    y = tl.where(count > 0, y, 0.0)
    y_ptrs = y_ptr + (begin.to(tl.int64) + token)[:, None] * CHANNELS + channel[None, :]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=mask)
