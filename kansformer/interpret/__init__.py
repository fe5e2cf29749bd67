"""Looking inside a trained vision model, and making it smaller.

- `block_activations.py`: what flows through the feed-forward blocks on real pictures
- `edges.py`: the layers of a block, taken apart into the functions on their edges
- `block_scores.py`: how much each edge and hidden unit of a block matters
- `block_pruning.py`, `block_refinement.py`: units or edges removed, grids refined, in a copy
- `edge_formulas.py`: formulas of learned functions, and splines projected onto them
- `units.py`: classes, pictures and patches that activate a hidden unit
- `attention.py`, `decision.py`: where a model looks, and which functions decided on one picture
- `cost.py`: parameters, operations and time of the blocks
- `inspection.py`, `blocks_drawing.py`, `__main__.py`: the command, its drawings and its flags
"""
