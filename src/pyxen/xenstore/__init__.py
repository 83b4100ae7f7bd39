"""xenstore: the small tree of names and values through which a domain and its host find each other's devices."""
