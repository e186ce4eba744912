"""Where workers run: one contract (`base`), a launcher a place. Only here is submitit.

What a worker does, and what became of it, is no business of this room.
"""
