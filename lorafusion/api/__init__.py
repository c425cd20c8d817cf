"""What ``import lorafusion`` offers: jobs in Python, training, callbacks, records, results."""
