"""Adapter methods (a file each), the bank of resident adapters, PEFT in and out."""
