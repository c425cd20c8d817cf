"""Fine-tune many LoRA adapters at once over one frozen base, each as if it were trained alone."""

__version__ = "0.1.0"
