"""Causal attention of each sample of a packed microbatch over itself."""
