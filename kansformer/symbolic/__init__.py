"""Small KANs that are read: fit, prune, refine, and edges as formulas."""

from kansformer.curve_fitting.function_library import FUNCTIONS, LIBRARY
from kansformer.symbolic.all_edges import (
    EdgeReport,
    Suggestion,
    auto_symbolic,
    fix_symbolic,
    suggest_symbolic,
    unfix_symbolic,
)
from kansformer.symbolic.attribution import Scores, attribute, feature_score
from kansformer.symbolic.dataset import Dataset, create_dataset
from kansformer.symbolic.fitting import fit
from kansformer.symbolic.formula import ex_round, symbolic_formula
from kansformer.symbolic.network_drawing import plot
from kansformer.symbolic.pruning import prune, prune_edge, prune_input, prune_node, refine
from kansformer.symbolic.shape_search import find_formula
from kansformer.symbolic.storage import load, save
from kansformer.symbolic.symbolic_layer import SymbolicKAN

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
