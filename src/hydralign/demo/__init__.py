"""The demonstration: the whole loop on a small model that comes with the package, offline, in minutes."""
