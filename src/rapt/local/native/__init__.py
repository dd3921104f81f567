"""C source of the search kernel and, where it could be compiled, the library. `rapt.local.nearest_kernel` loads it."""
