"""`python -m metaforge` is the `metaforge` command."""

from metaforge.cli.app import main

if __name__ == "__main__":
    main()
