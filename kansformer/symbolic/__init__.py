"""Small KANs on functions: fit, prune and refine a network, then read it as a formula.

- `dataset.py`: samples of a function
- `symbolic_layer.py`, `symbolic_kan.py`: the network
- `activations.py`, `active_parameters.py`, `objective.py`, `fitting.py`: training it
- `attribution.py`, `pruning.py`, `refinement.py`: scores, and what is removed or refined by them
- `single_edge.py`, `all_edges.py`, `formula_trials.py`: replacing splines by functions
- `formula.py`, `network_drawing.py`, `storage.py`: the result as text, as a picture, as a file
- `shape_search.py`: all of this for networks of several shapes
"""

from kansformer.curve_fitting.candidates import Suggestion
from kansformer.curve_fitting.expressions import ex_round
from kansformer.curve_fitting.function_library import FUNCTIONS, LIBRARY
from kansformer.symbolic.all_edges import EdgeReport, auto_symbolic
from kansformer.symbolic.attribution import Scores, attribute, feature_score
from kansformer.symbolic.dataset import Dataset, create_dataset
from kansformer.symbolic.fitting import fit
from kansformer.symbolic.formula import symbolic_formula
from kansformer.symbolic.network_drawing import plot
from kansformer.symbolic.pruning import prune, prune_edge, prune_input, prune_node
from kansformer.symbolic.refinement import refine
from kansformer.symbolic.shape_search import find_formula
from kansformer.symbolic.single_edge import fix_symbolic, suggest_symbolic, unfix_symbolic
from kansformer.symbolic.storage import load, save
from kansformer.symbolic.symbolic_kan import SymbolicKAN

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
