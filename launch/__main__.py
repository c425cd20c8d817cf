"""``python -m lorafusion.launch FILE --stages S``: one rank, started by torchrun on each."""

from lorafusion.cli.rank import main

if __name__ == "__main__":
    main()
