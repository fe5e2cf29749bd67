"""Sparsity: of five inputs, three matter; the network learns which, and is pruned to them.

python examples/prune_edges.py [--save FILE.png]
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kansformer.regression import KANTrainer, create_synthetic_dataset
from models.kan_variants import SparseKAN

NAMES = ["sin(πx)", "2x²", "|x|", "nothing", "nothing"]


def penalty(model: torch.nn.Module) -> torch.Tensor:
    """A group penalty, under which whole edges that are not needed become zero."""
    assert isinstance(model, SparseKAN)
    return 0.01 * model.group_penalty()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", type=Path, metavar="FILE", help="draw the importance")
    args = parser.parse_args()
    torch.manual_seed(0)
    train = create_synthetic_dataset("additive", 500, noise=0.05, seed=0)
    test = create_synthetic_dataset("additive", 1000, seed=1)

    def error(trainer: KANTrainer) -> float:
        return float((trainer.predict(test.x) - test.y).square().mean().sqrt())

    options = {"lr": 0.02, "weight_decay": 0.0, "batch_size": None}
    model = SparseKAN([5, 4, 1], threshold=0.05).double()
    trainer = KANTrainer(model, penalty=penalty, **options)
    trainer.fit(train.x, train.y, epochs=600)
    print(f"trained with a penalty: {100 * model.sparsity(train.x):.0f} % of the edges idle,"
          f" test RMSE {error(trainer):.4f}")  # fmt: skip
    pruned = model.pruned(train.x)
    trainer = KANTrainer(pruned, **options)
    print(f"pruned: test RMSE {error(trainer):.4f}")
    trainer.fit(train.x, train.y, epochs=300)
    importance = pruned.importance(train.x)
    print(f"fine-tuned without the penalty: test RMSE {error(trainer):.4f}")
    for number, (name, share) in enumerate(zip(NAMES, importance.tolist(), strict=True)):
        print(f"  input {number}, {name:8} importance {share:.3f}")
    if args.save:
        draw(pruned, train.x, importance, args.save)
        print(f"wrote {args.save}")


def draw(model: SparseKAN, x: torch.Tensor, importance: torch.Tensor, path: Path) -> None:
    """Draws the strength of the first layer's edges, and the inputs' importance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 3), layout="constrained")
    edges, bars = figure.subplots(1, 2, sharey=True)
    strengths = model.edge_strengths(x)[0].T
    image = edges.imshow(strengths.numpy(), cmap="Blues", vmin=0, aspect="auto")
    figure.colorbar(image, ax=edges, label="strength")
    edges.set(xlabel="hidden node", xticks=range(strengths.shape[1]))
    for row, column in (strengths == 0).nonzero().tolist():
        edges.text(column, row, "×", ha="center", va="center", color="0.6")
    edges.set_yticks(range(len(NAMES)), NAMES)
    bars.barh(range(len(NAMES)), importance.tolist())
    bars.set(xlabel="share of the output variance")
    bars.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
