"""What the engine uses of torch that is not public, in one file, with the public alternative.

Names are bound here once, so that a release of torch without one of them fails at import, by name,
and not in the middle of a training. `tests/models/engine/test_torch_private.py` calls each.
"""

import torch
from torch.autograd import forward_ad

__all__ = [
    "OpOverload", "are_functorch_transforms_active", "below_autograd", "dispatch_stack_length",
    "forward_ad", "onednn_linear",
]  # fmt: skip

# Whether torch.func's transforms (vmap, grad, …) are active. Public: none.
are_functorch_transforms_active = torch._C._are_functorch_transforms_active

# How many modes intercept every operation (fake tensors, FLOP counters). Public: none.
dispatch_stack_length = torch._C._len_torch_dispatch_stack

# A context in which operators run below autograd. Public: torch.library.custom_op enters it by
# itself, with checks at each call that take longer than the product of a small layer.
below_autograd = torch._C._AutoDispatchBelowAutograd

# The type of `torch.ops.namespace.name.default`. Public: none.
OpOverload = torch._ops.OpOverload

# forward_ad._current_level is below 0 outside of forward-mode differentiation. Public: unpack_dual,
# for one tensor at a time, which torch.compile cannot trace.
assert isinstance(forward_ad._current_level, int)

# oneDNN's matrix product with a weight (out, in), or None in a build of torch without it.
# Public: F.linear, for which torch takes MKL.
onednn_linear = (
    torch.ops.mkldnn._linear_pointwise
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    else None
)
