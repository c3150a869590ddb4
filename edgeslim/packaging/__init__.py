"""Packages that an app or a firmware build takes in: an Android library, a tarball."""
