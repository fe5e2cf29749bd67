"""Small KANs that are read: fit, prune, refine, and edges as formulas."""

from kansformer.interpret.attribution import Scores, attribute, feature_score
from kansformer.interpret.dataset import Dataset, create_dataset
from kansformer.interpret.drawing import plot
from kansformer.interpret.fitting import fit
from kansformer.interpret.formula import ex_round, symbolic_formula
from kansformer.interpret.functions import FUNCTIONS, LIBRARY
from kansformer.interpret.model import SymbolicKAN
from kansformer.interpret.search import find_formula
from kansformer.interpret.storage import load, save
from kansformer.interpret.surgery import prune, prune_edge, prune_input, prune_node, refine
from kansformer.interpret.symbolic import (
    EdgeReport,
    Suggestion,
    auto_symbolic,
    fix_symbolic,
    suggest_symbolic,
    unfix_symbolic,
)

__all__ = [
    "FUNCTIONS",
    "LIBRARY",
    "Dataset",
    "EdgeReport",
    "Scores",
    "Suggestion",
    "SymbolicKAN",
    "attribute",
    "auto_symbolic",
    "create_dataset",
    "ex_round",
    "feature_score",
    "find_formula",
    "fit",
    "fix_symbolic",
    "load",
    "plot",
    "prune",
    "prune_edge",
    "prune_input",
    "prune_node",
    "refine",
    "save",
    "suggest_symbolic",
    "symbolic_formula",
    "unfix_symbolic",
]
