"""KAN blocks that start as the MLP blocks of a pretrained model."""

from kansformer.errors import UserError
from kansformer.pretrained.conversion import StateDict
from models.vit_model import ViTConfig


def mlp_to_ffn(state: StateDict, config: ViTConfig) -> StateDict:
    """Turns `blocks.N.mlp.fc{1,2}` of a state dict into the blocks that `config.ffn` names.

    Raises:
        UserError: there is no such way yet.
    """
    raise UserError(
        f"--ffn {config.ffn} on weights with mlp blocks is not available yet; leave out --ffn"
    )
