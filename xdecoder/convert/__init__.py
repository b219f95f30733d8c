"""Published weights to ours: tables of names, and the engine that applies them."""
