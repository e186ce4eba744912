"""Trains: slots, the step, divergence while it happens, outcomes. The only loop over steps."""
