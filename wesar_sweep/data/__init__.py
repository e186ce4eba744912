"""Text to tokens: files and data sets, documents, the held-out split, tokenizers, token files.

Arrays come out; torch stays out of this room, so that a corpus can be prepared and looked at where
there is none.
"""
