"""The same function with cheaper input gradients: kernels, layers, rewriting of a network, the trial, the plan.

Whether a run is worth accelerating is decided in `evaluation.acceleration_policy`.
"""
