"""The named, versioned rules of stability: numpy in, verdicts out.

What a divergence is, what a spike is, and the spike scores of others; used while a run trains and
when a report is made, so that both say the same. Nothing here reads files, trains or draws.
"""
