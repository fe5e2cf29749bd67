"""The service returns the same answers as the predictor and the explanations."""

from pathlib import Path

import pytest

from kansformer.checkpoint import save_model
from kansformer.data.preprocessing import Preprocessing
from kansformer.errors import UserError
from kansformer.infer import Predictor
from kansformer.interpret.attention import explain
from kansformer.web.service import Service
from models.vit_model import create_model
from tests.conftest import write_picture


def test_a_look_is_the_answer_and_the_attention_map(trained: Path, colors: Path) -> None:
    predictor = Predictor.load(trained / "best.safetensors")
    service = Service(predictor, "colors")
    path = colors / "red" / "red 1.png"
    look = service.look(path)
    (answer,) = predictor(path)
    assert look.top == answer["top"]
    assert look.attention.tobytes() == explain(predictor.model, path).tobytes()
    assert look.decision is not None
    assert predictor.class_names[look.decision.winner] == answer["top"][0]["class"]
    files = [(name, colors / name) for name in ("red/red 1.png", "blue/blue 2.png")]
    assert [row["path"] for row in service.table(files)] == [name for name, _ in files]
    with pytest.raises(UserError, match=r"^mine\.png: "):
        service.look(trained / "best.safetensors", "mine.png")


def test_mlps_have_no_functions_to_show(tmp_path: Path) -> None:
    model = create_model("vit_micro_patch8_16", num_classes=2)
    save_model(tmp_path / "m.safetensors", model, Preprocessing(16), ["a", "b"])
    write_picture(tmp_path / "x.png", (1, 2, 3), 0)
    service = Service(Predictor.load(tmp_path / "m.safetensors"), "mlp")
    assert service.look(tmp_path / "x.png").decision is None
