"""The zeroth-order engine: random directions, perturbed weights, estimators and updates.

It knows models only as named arrays, and nothing of tasks, files or processes.
"""
