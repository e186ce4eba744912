"""The mathematics, one file an op: formula, source and plain-torch reference, over K runs.

Letters in names: K runs in a stack, B sequences, T tokens, D width, H heads, E head width, F
feed-forward width, V vocabulary, N layers, M matrices of a group, O and I outputs and inputs of
one. Nothing here reduces over K, so that a run is the same whatever its neighbours are. `registry`
lists every op. Models, schedules and data sources do not belong here.
"""
