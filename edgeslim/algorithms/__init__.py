"""The arithmetic of compression on plain arrays: rounding, scaling, pruning, factorization, shared values, bits."""
