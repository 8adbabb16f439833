"""Checks of an installation and of the machine that it runs on."""
