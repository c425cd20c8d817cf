"""Load a causal LM and run it on packed samples: stages, attention, loss at labelled rows."""
