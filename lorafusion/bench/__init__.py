"""Measures our training against others', on the same jobs, in one run."""
