"""The CPU backend's C++ loops; without a compiler the ops run in torch, with equal masks."""
