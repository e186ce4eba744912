"""The decoder over effective weights and what makes them: shapes, roles, initial stds, gates.

No optimizer, no data, no schedule: those are `wesar_sweep.training`. No YAML: `wesar_sweep.config`.
"""
