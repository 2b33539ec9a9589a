"""The `metaforge` command, also as `python -m metaforge`."""

from __future__ import annotations


def main() -> None:
    """Run the command line; Ctrl-C ends it in order even while it is still being imported."""
    try:
        from metaforge.cli.app import main as command

        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
