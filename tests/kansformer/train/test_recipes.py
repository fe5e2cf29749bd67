"""Every recipe describes a model and says what it gave."""

import pytest

from kansformer.train.config import TrainConfig
from kansformer.train.recipes import RECIPES
from models.vit_model import create_model


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds(name: str) -> None:
    settings = RECIPES[name]()
    config = TrainConfig(data_path="x", **settings)
    create_model(config.model, **config.model_overrides())
    assert RECIPES[name].__doc__
