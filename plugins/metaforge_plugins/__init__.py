"""The plugins that come with MetaForge: one plugin, one file, registered like anybody else's."""
