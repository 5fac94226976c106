"""Lets ``python -m anoscan`` do what the ``anoscan`` script does."""

from anoscan.cli.app import main

if __name__ == "__main__":
    main()
