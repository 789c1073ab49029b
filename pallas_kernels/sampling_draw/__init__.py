"""One token per row, drawn from the softmax of its logits by random numbers of its own.

The tokens race in two rounds: the winner is the largest log p - log E, with E exponentially distributed, which follows
p without normalising it. First groups of tokens race by their masses, then the tokens of the group that won by theirs.
So there is a random number for each group instead of each token, and what moves a logit by rounding moves a draw no
more often than a race of all the tokens would. (A sum over the vocabulary against one random number moves as often as
any of its many steps does.)

Random numbers are threefry's (Salmon et al. 2011) as jax.random has them: of the row's seed with the sample's index and
the position folded in, counted by group; and with the winner folded in as well, counted by member.
"""

import jax

from pallas_kernels import choose

LANES = 1024
"""Token t is in lane t % LANES of block t // LANES."""
MEMBERS = 24
"""Tokens of a group, at the most: those of a lane in every PARTS-th block, PARTS being the least that suffice."""


def num_parts(vocabulary: int) -> int:
    """Of how many times LANES groups a row consists. Group g is lane g % LANES of blocks g // LANES, + parts, ..."""
    return -(-vocabulary // (LANES * MEMBERS))


def sampling_draw(
    logits: jax.Array,
    lowest: jax.Array,
    temperature: jax.Array,
    seed: jax.Array,
    sample_index: jax.Array,
    position: jax.Array,
) -> jax.Array:
    """A token of each row from the softmax of logits / temperature, among those not below `lowest`, [B] int32.

    Where the temperature is below sampling_threshold.GREEDY_BELOW, it is the likeliest, the lowest id among equals.

    logits: [B, V] float32; tokens of -inf are never drawn. lowest, temperature: [B] float32. seed: [B, 2] uint32, the
    low and the high word. sample_index: [B] int32. position: [B] int32 of the token to draw.
    """
    operands = (logits, lowest, temperature, seed, sample_index, position)
    given = [(x.dtype.name, x.shape) for x in operands]
    rows = logits.shape[:1]
    floats, ints = ("float32", rows), ("int32", rows)
    if given != [("float32", logits.shape), floats, floats, ("uint32", (*rows, 2)), ints, ints] or logits.ndim != 2:
        raise ValueError(
            f"sampling_draw: logits, lowest, temperature, seed, sample_index, position are {given}: they must be"
            " float32 [B, V], float32 [B], float32 [B], uint32 [B, 2], int32 [B] and int32 [B]"
        )
    result: jax.Array = choose.run("sampling_draw", ("triton", "reference"), *operands)
    return result
