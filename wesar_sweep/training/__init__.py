"""Trains: data, slots, the step, divergence while it happens, outcomes. The only loop over steps.

Imports nothing at package level: `corpus` must stay usable without torch.
"""
