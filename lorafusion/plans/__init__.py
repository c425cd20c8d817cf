"""Draws a plan and its simulation, and sums them up."""
