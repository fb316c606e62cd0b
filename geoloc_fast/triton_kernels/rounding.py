"""One rounding of a float32 result to the type of an output."""

import triton
import triton.language as tl


@triton.jit
def rounded(value, dtype: tl.constexpr):
    """To nearest even. bfloat16 is rounded as integers, since Triton's interpreter would cut it off."""
    if dtype == tl.bfloat16:
        bits = tl.where(value == value, value.to(tl.int32, bitcast=True), 0x7FC00000)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return value.to(dtype)
