"""Recorded activations of the feed-forward blocks of a ViT on real pictures."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from models.plain import plain
from models.vit_model import VisionTransformer, ViTConfig

TOKENS = 8  # kept of each picture


@dataclass(frozen=True)
class BlockRecord:
    """Activations of a feed-forward block for N tokens.

    Attributes:
        inputs: (N, D) inputs of the first layer.
        hidden: (N, hidden) inputs of the second layer, after the norm or activation between them.
        outputs: (N, D) outputs of the block, before they are added to the residual stream.
    """

    inputs: Tensor
    hidden: Tensor
    outputs: Tensor


def tokens_that_matter(config: ViTConfig, block: int) -> slice:
    """The tokens whose block outputs affect the prediction.

    These are all tokens, except in the last block, after which the head reads only the class token,
    or with mean pooling the patches. A head that reads both leaves out the registers between them,
    which a slice cannot, so they are included.
    """
    if block < config.depth - 1 or config.pool == "both":
        return slice(None)
    if config.pool == "token":
        return slice(0, 1 + config.distilled)
    return slice(config.prefix_tokens, None)


@torch.no_grad()
def record(
    model: VisionTransformer, pictures: Iterable[Tensor], tokens: int = TOKENS, seed: int = 0
) -> list[BlockRecord]:
    """Runs pictures through a model and records the activations of some of their tokens.

    Args:
        pictures: batches (B, C, H, W).
        tokens: number per picture, drawn at random from those that affect the prediction.
        seed: for the draw, with a separate generator.

    Returns:
        A record for each block, on the CPU.

    Raises:
        ValueError: there are no pictures.
    """
    generator = torch.Generator().manual_seed(plain(seed))
    kept: list[list[BlockRecord]] = [[] for _ in model.blocks]
    for batch in pictures:
        for block, (full, parts) in enumerate(zip(block_records(model, batch), kept, strict=True)):
            B, count = full.inputs.shape[:2]
            order = torch.arange(count)[tokens_that_matter(model.config, block)].expand(B, -1)
            draw = torch.rand(order.shape, generator=generator).argsort(dim=1)[:, :tokens]
            chosen = torch.arange(B)[:, None], order.gather(1, draw)
            parts.append(
                BlockRecord(*(_at(t, chosen) for t in (full.inputs, full.hidden, full.outputs)))
            )
    if not kept[0]:
        raise ValueError("there are no pictures to record")
    return [
        BlockRecord(
            torch.cat([part.inputs for part in parts]),
            torch.cat([part.hidden for part in parts]),
            torch.cat([part.outputs for part in parts]),
        )
        for parts in kept
    ]


def _at(tensor: Tensor, chosen: tuple[Tensor, Tensor]) -> Tensor:
    """The chosen tokens, (B, T, F) -> (chosen, F)."""
    return tensor.cpu()[chosen].flatten(0, 1)


@torch.no_grad()
def block_records(model: VisionTransformer, batch: Tensor) -> list[BlockRecord]:
    """Activations of all tokens of a batch in every block, (B, T, ...), on the model's device."""
    with _watched(model) as seen:
        model(batch.to(model.pos_embed.device))
    return [BlockRecord(block["fc1"], block["fc2"], block["out"]) for block in seen]


@contextmanager
def _watched(model: VisionTransformer) -> Iterator[list[dict[str, Tensor]]]:
    """Collects the inputs of both layers and the output of every block, in evaluation mode."""
    seen: list[dict[str, Tensor]] = [{} for _ in model.blocks]
    handles = []
    for block, kept in enumerate(seen):
        ffn = model.get_submodule(f"blocks.{block}.mlp")
        for name in ("fc1", "fc2"):

            def keep(
                _: torch.nn.Module, args: tuple[Tensor], kept: dict[str, Tensor] = kept,
                name: str = name,
            ) -> None:  # fmt: skip
                kept[name] = args[0]

            handles.append(ffn.get_submodule(name).register_forward_pre_hook(keep))

        def keep_output(
            _: torch.nn.Module, args: tuple[Tensor], out: Tensor, kept: dict[str, Tensor] = kept
        ) -> None:
            kept["out"] = out

        handles.append(ffn.register_forward_hook(keep_output))
    was_training = model.training
    model.eval()
    try:
        yield seen
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
