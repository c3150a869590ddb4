"""Checks of a finished build: each yields findings, with a limit and a verdict, and changes nothing."""
