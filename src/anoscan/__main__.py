"""Make ``python -m anoscan`` do the same as the ``anoscan`` script."""

from anoscan.cli.app import main

if __name__ == "__main__":
    main()
