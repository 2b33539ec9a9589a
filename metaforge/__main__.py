"""The `metaforge` command, also available as `python -m metaforge`."""

from __future__ import annotations


def main() -> None:
    """Run the command line; Ctrl-C exits with code 130 and no traceback, even during the first imports."""
    try:
        from metaforge.cli.app import main as command

        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
