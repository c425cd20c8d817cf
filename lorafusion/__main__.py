"""``python -m lorafusion``."""

from lorafusion.cli import main

if __name__ == "__main__":
    main()
