"""The `metaforge` command."""
