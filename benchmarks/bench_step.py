"""A whole training step: KANsformers against their MLP twins and timm's ViTs.

    python benchmarks/bench_step.py --threads 2 --json step.json

A step is forward, cross-entropy, backward and AdamW on random pictures, at 224 px with patches of
16 and at 32 px with patches of 4, in one process and in turns. Then 200 steps of a small KANsformer
are trained in each way to run its layers, and the loss curves compared.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import measure
from benchmarks.textbook import TextbookKANLinear
from models.kan import GroupKANLinear, KANLinear
from models.vit_model import create_model

INPUTS = [(224, 16, 8), (32, 4, 64)]  # pixels, patch, batch
CLASSES = 100


def set_mode(model: nn.Module, mode: str) -> nn.Module:
    """The model, with every KAN layer run in that way."""
    for module in model.modules():
        if isinstance(module, KANLinear | GroupKANLinear):
            module.mode = mode
    return model


def textbook(model: nn.Module) -> nn.Module:
    """The model, with every KAN layer run as the textbook has it."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, KANLinear):
                setattr(module, name, TextbookKANLinear(child))
    return model


def contenders(size: str, pixels: int, patch: int) -> dict[str, nn.Module]:
    """Models of one size by name."""
    shape: dict[str, Any] = {"img_size": pixels, "patch_size": patch, "num_classes": CLASSES}

    def kansformer(ffn: str = "kan") -> nn.Module:
        return create_model(f"kansformer_{size}", ffn=ffn, **shape)

    return {
        "timm's ViT": timm.create_model(f"vit_{size}_patch16_224", **shape),
        "MLP twin": create_model(f"vit_{size}", **shape),
        "group-KAN, compiled": set_mode(kansformer("group-kan"), "compiled"),
        "group-KAN, eager": set_mode(kansformer("group-kan"), "eager"),
        "KANsformer, compiled": set_mode(kansformer(), "compiled"),
        "KANsformer, eager": set_mode(kansformer(), "eager"),
        "KANsformer, textbook": textbook(kansformer()),
    }


def training_step(
    model: nn.Module, shape: tuple[int, ...], classes: int, device: str
) -> Callable[[], torch.Tensor]:
    """A function that trains the model for one step on the same pictures and returns the loss.

    Args:
        shape: of the pictures, (B, C, S, S).
    """
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)  # as train.py's
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device)
    labels = torch.randint(classes, shape[:1], generator=generator).to(device)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def measured(
    size: str, pixels: int, patch: int, batch: int, repeats: int, device: str
) -> list[dict[str, Any]]:
    """One record per contender."""
    models = contenders(size, pixels, patch)
    shape = batch, 3, pixels, pixels
    jobs = {name: training_step(m, shape, CLASSES, device) for name, m in models.items()}
    times = measure.interleaved(jobs, repeats, device)
    records = []
    for name, model in models.items():
        low, median, high = measure.quartiles(times[name])
        records.append({
            "size": size, "pixels": pixels, "patch": patch, "batch": batch, "model": name,
            "parameters": sum(p.numel() for p in model.parameters()),
            "step_ms": median, "step_ms_q1": low, "step_ms_q3": high,
            "times_timm": measure.paired_ratio(times[name], times["timm's ViT"]),
            "times_twin": measure.paired_ratio(times[name], times["MLP twin"]),
            "images_per_second": 1000 * batch / median,
        })  # fmt: skip
    return records


def loss_curves(steps: int, device: str) -> dict[str, list[float]]:
    """Losses of a small KANsformer by the way its layers run."""
    curves = {}
    for mode in ("plain", "eager", "compiled"):
        torch.manual_seed(0)
        model = create_model("kansformer_micro", img_size=32, patch_size=8, num_classes=CLASSES)
        step = training_step(set_mode(model, mode), (64, 3, 32, 32), CLASSES, device)
        curves[mode] = [float(step()) for _ in range(steps)]
    return curves


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Benchmark of a training step.")
    parser.add_argument("--repeats", type=int, default=25, help="rounds (default 25)")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch's)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    facts = measure.machine(options.device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))

    records = []
    for size in options.sizes:
        for pixels, patch, batch in INPUTS:
            found = measured(size, pixels, patch, batch, options.repeats, options.device)
            records += found
            print(f"\n{size}, {pixels} px, patches of {patch}, batch {batch}, float32")
            print(
                f"{'':24}{'parameters':>12}{'step ms':>10}  {'quartiles':>17}{'x timm':>8}"
                f"{'x twin':>8}"
            )
            for r in found:
                spread = f"{r['step_ms_q1']:.0f} to {r['step_ms_q3']:.0f}"
                print(f"{r['model']:24}{r['parameters']:12,}{r['step_ms']:10.0f}  {spread:>17}"
                      f"{r['times_timm']:8.2f}{r['times_twin']:8.2f}")  # fmt: skip

    curves = loss_curves(200, options.device)
    apart = {
        mode: max(abs(a - b) for a, b in zip(curve, curves["plain"], strict=True))
        for mode, curve in curves.items()
    }
    print("\n200 steps from", f"{curves['plain'][0]:.4f} to {curves['plain'][-1]:.4f};",
          "largest distance from the plain way's loss:",
          ", ".join(f"{mode} {value:.1e}" for mode, value in apart.items()))  # fmt: skip
    if options.json:
        content = {"machine": facts, "steps": records, "curves_apart": apart, "curves": curves}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
