def supported(*a): return False
