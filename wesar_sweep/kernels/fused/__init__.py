"""The ops as Triton kernels for a GPU, one file an op, its reference under the same name above.

Each is a forward and a backward function on tensors, without autograd: `model.fused_decoder` calls
them in order. They write only what they return, so a step can be captured and replayed.
"""
