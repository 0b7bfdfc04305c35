"""Zeroth-order optimisation of named arrays: random directions, perturbed weights, estimators and updates.

It depends on no task, model, file layout or process.
"""
