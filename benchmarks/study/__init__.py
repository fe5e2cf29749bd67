"""Does the KAN help? Twins of equal size, on real pictures, over several seeds.

`comparison` and `ablations` train and write raw results; `tables` draws what is read of them.
"""
