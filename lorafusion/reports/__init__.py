"""The report of a run: what its folder says, as figures, as JSON and as a page."""
