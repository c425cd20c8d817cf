"""Measures a machine and a base, and fits the planner's cost model to it."""
