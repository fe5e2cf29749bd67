"""The models that the study compares: other blocks, and in the last one another head, alone."""

from typing import Any

BASELINE = "mlp"
RATES = (1e-3, 2e-3, 4e-3)  # of which each arm has its own, by validation
# Fields of `TrainConfig`. Every KAN has as many parameters as the MLP, but for the last, which is
# taken as it is.
ARMS: dict[str, dict[str, Any]] = {
    BASELINE: {"ffn": "mlp"},
    "kan": {"ffn": "kan", "match": "params"},
    "group-kan": {"ffn": "group-kan"},
    # the blocks of vision_kansformer_mnist_flower_cifar10: KAN([dim, 64, dim]) of efficient-kan
    "vision_kansformer": {
        "ffn": "kan", "head": "kan", "kan_hidden": 64, "grid_range": (-1.0, 1.0),
        "kan_norm": False, "kan_init": "efficient-kan",
    },
}  # fmt: skip
