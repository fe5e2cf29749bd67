"""Records hold what the blocks compute, and all that affects the prediction."""

import torch

from kansformer.interpret.block_activations import record, tokens_that_matter
from tests.kansformer.interpret.test_edges import vit


def test_records_reproduce_the_block() -> None:
    model = vit().train()
    pictures = torch.randn(10, 3, 8, 8)
    records = record(model, pictures.split(4), tokens=3)
    assert model.training
    model.eval()
    assert [len(recorded.inputs) for recorded in records] == [
        30,
        10,
    ]  # only the class token matters at last
    for block, recorded in enumerate(records):
        ffn = model.get_submodule(f"blocks.{block}.mlp")
        torch.testing.assert_close(ffn(recorded.inputs), recorded.outputs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            ffn.norm(ffn.fc1(recorded.inputs)), recorded.hidden, rtol=1e-4, atol=1e-5
        )


def test_the_other_tokens_of_the_last_block_change_nothing() -> None:
    for pool in ("token", "avg", "both"):
        model = vit(pool=pool, reg_tokens=1)
        x = torch.randn(2, 3, 8, 8)
        before = model(x)
        tokens = tokens_that_matter(model.config, 1)

        def disturb(
            module: object, args: object, out: torch.Tensor, kept: slice = tokens
        ) -> object:
            noise = torch.randn_like(out)
            noise[:, kept] = 0
            return out + noise

        handle = model.get_submodule("blocks.1.mlp").register_forward_hook(disturb)
        torch.testing.assert_close(model(x), before)
        handle.remove()
        assert tokens_that_matter(model.config, 0) == slice(None)
