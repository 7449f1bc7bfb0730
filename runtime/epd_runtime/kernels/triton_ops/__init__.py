"""The operations of `ops` as Triton kernels, for CUDA; under TRITON_INTERPRET=1 they run on CPU, for tests.

Importing this package imports triton, which takes seconds: only `ops.choose` and the attention registry do.
"""

from epd_runtime.kernels.triton_ops.activation import silu_mul
from epd_runtime.kernels.triton_ops.kv_store import store_kv
from epd_runtime.kernels.triton_ops.norm import add_rms_norm, rms_norm
from epd_runtime.kernels.triton_ops.packed import packed_attention
from epd_runtime.kernels.triton_ops.rope import rotate

__all__ = ["add_rms_norm", "packed_attention", "rms_norm", "rotate", "silu_mul", "store_kv"]
