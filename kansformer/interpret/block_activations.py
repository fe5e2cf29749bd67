"""What flows through the feed-forward blocks of a ViT on real pictures."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from models.plain import plain
from models.vit_model import VisionTransformer, ViTConfig

TOKENS = 8  # of each picture that are kept


@dataclass(frozen=True)
class BlockRecord:
    """What went through a feed-forward block, token by token.

    Attributes:
        inputs: (N, D) of its first layer.
        hidden: (N, hidden) of its second layer, so behind the norm or activation between them.
        outputs: (N, D) of the block, before it is added to the residual stream.
    """

    inputs: Tensor
    hidden: Tensor
    outputs: Tensor


def tokens_that_matter(config: ViTConfig, block: int) -> slice:
    """Tokens whose output of a block has an effect.

    All of them, but in the last block: behind it the head reads the class token alone, or with
    mean pooling the patches.
    """
    if block < config.depth - 1:
        return slice(None)
    if config.pool == "token":
        return slice(0, 1 + config.distilled)
    return slice(config.prefix_tokens, None)


@torch.no_grad()
def record(
    model: VisionTransformer, pictures: Iterable[Tensor], tokens: int = TOKENS, seed: int = 0
) -> list[BlockRecord]:
    """Runs pictures through a model and keeps, block by block, what some of their tokens gave.

    Args:
        pictures: batches (B, C, H, W).
        tokens: how many of each picture are kept, drawn at random among those that matter.
        seed: of the draw, by an own generator.

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
    """All tokens of one batch in every block, (B, T, ...), where the model is."""
    with _watched(model) as seen:
        model(batch.to(model.pos_embed.device))
    return [BlockRecord(own["fc1"], own["fc2"], own["out"]) for own in seen]


@contextmanager
def _watched(model: VisionTransformer) -> Iterator[list[dict[str, Tensor]]]:
    """Inputs of both layers and the output of every block, in evaluation mode, by hooks."""
    seen: list[dict[str, Tensor]] = [{} for _ in model.blocks]
    handles = []
    for block, own in enumerate(seen):
        ffn = model.get_submodule(f"blocks.{block}.mlp")
        for name in ("fc1", "fc2"):

            def keep(
                _: torch.nn.Module, args: tuple[Tensor], own: dict[str, Tensor] = own,
                name: str = name,
            ) -> None:  # fmt: skip
                own[name] = args[0]

            handles.append(ffn.get_submodule(name).register_forward_pre_hook(keep))

        def keep_output(
            _: torch.nn.Module, args: tuple[Tensor], out: Tensor, own: dict[str, Tensor] = own
        ) -> None:
            own["out"] = out

        handles.append(ffn.register_forward_hook(keep_output))
    was_training = model.training
    model.eval()
    try:
        yield seen
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
