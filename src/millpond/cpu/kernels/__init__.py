"""What is compiled by Numba on a CPU: attention in bfloat16, and what int8 layers do.

Arrays are numpy views of torch's memory, which begins at a cache line; tiles need that. Elements
are float32, or bfloat16 as uint16.

Numba comes with `pip install "millpond[cpu]"`: import this package only where it is needed.
"""

from .dot_attention import AttentionArguments, attend_by_dot_products, room_bytes
from .dot_products import has_dot_products
from .int8_rows import Tiles, add_and_norm, dequantize, gelu_and_quantize, in_tiles, quantize
from .tile_attention import attend
from .tiles import COLUMNS_AT_ONCE, OUTPUTS_AT_ONCE, PALETTE, ROWS_AT_ONCE, has_tiles

__all__ = [
    "COLUMNS_AT_ONCE",
    "OUTPUTS_AT_ONCE",
    "PALETTE",
    "ROWS_AT_ONCE",
    "AttentionArguments",
    "Tiles",
    "add_and_norm",
    "attend",
    "attend_by_dot_products",
    "dequantize",
    "gelu_and_quantize",
    "has_dot_products",
    "has_tiles",
    "in_tiles",
    "quantize",
    "room_bytes",
]
