"""How a KAN layer is computed. Only the modules of `models/` use this package.

- `definition.py`: both layers in plain operations, which the other ways are tested against.
- `operators.py`: the layers as operators of torch, with the choice of the way to run them.
- `cpp/`: on a CPU, a whole layer in C++, compiled for the processor at hand.
- `blocks.py`: else block by block, features by `eager.py` or `inductor.py`, then their product.
- `memory.py`: buffers and tables kept between calls; `torch_private.py`: private parts of torch.

A call goes from `models/kan.py` to `operators.py`, then to `cpp/kernels.py`, or to `blocks.py` and
`eager.py` or `inductor.py`. Where kernels cannot be compiled, `fallback.py` warns.
"""
