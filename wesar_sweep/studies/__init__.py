"""Which cells are trained: the room of Optuna, and the only one that imports it.

A worker's `queue.CellQueue` takes cells from the study that all workers share, hands out their
replicates as runs, and tells one finite observation a cell. Training, devices and reports do not
belong here.
"""
