def use_fused(*a): return False
forward = backward = None
