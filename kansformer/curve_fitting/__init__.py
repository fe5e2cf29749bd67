"""Fits formulas a·f(b·x + c) + d to samples of functions of one variable, and writes them out.

- `function_library.py`: the functions f
- `candidates.py`: every f fitted to every curve
- `least_squares.py`: the optimizer
- `expressions.py`: a fitted formula as a sympy expression
"""
