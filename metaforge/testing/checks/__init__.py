"""The checks of the conformance kit: one file per kind of plugin, and two for properties that several kinds share."""
