"""What a study leaves on disk: typed rows and curves, written atomically, one writer a file.

Nothing here decides what is trained or how it is judged. Only `frames` knows polars; no module here
knows torch.
"""
