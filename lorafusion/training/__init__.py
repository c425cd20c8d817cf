"""The plan carried out: executor, per-job optimizers, metrics, checkpoints, quarantine."""
