"""How an iteration reaches the workers and comes back: in one process, or through Ray."""
