"""Formats, chat templates, masks, the token cache, the order of samples."""
