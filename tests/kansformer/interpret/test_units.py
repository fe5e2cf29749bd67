"""Units are described by the classes and pictures that activate them most."""

import pytest
import torch

from kansformer.interpret.block_activations import block_records
from kansformer.interpret.units import unit_use
from tests.kansformer.interpret.test_edges import vit


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_units_by_class_and_picture(dtype: torch.dtype) -> None:
    model = vit(kan_hidden=6)
    pictures = torch.randn(12, 3, 8, 8)
    labels = (torch.arange(12) % 2).to(dtype)  # the third class has no pictures
    use = unit_use(model, zip(pictures.split(5), labels.split(5), strict=True), top=4)
    for block, of_block in enumerate(use):
        hidden = block_records(model, pictures)[block].hidden
        hidden = hidden[:, 1:] if block == 0 else hidden[:, :1]
        for unit in range(6):
            by_picture = hidden[..., unit].amax(dim=1)
            best = by_picture.argsort(descending=True)[:4]
            assert of_block.pictures[unit].tolist() == best.tolist()
            torch.testing.assert_close(of_block.values[unit], by_picture[best])
            patch = int(of_block.patches[unit, 0])
            if block == 0:
                assert hidden[best[0], patch, unit] == by_picture.max()
            else:
                assert patch == -1
            for label in (0, 1):
                mean = hidden[labels == label][..., unit].mean()
                torch.testing.assert_close(of_block.class_means[label, unit], mean)
        assert of_block.class_means[2].isnan().all()
