"""Fits formulas a·f(b·x + c) + d to samples of functions of one variable."""
