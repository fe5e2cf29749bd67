"""The commands train, predict and split.

The others are the `__main__.py` of their packages, and `data/doctor.py`.
"""
