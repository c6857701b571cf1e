"""The version of the project, which `setup.cfg` reads from here too."""

VERSION = "0.1.0"
