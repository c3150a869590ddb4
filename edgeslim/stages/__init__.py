"""Techniques, one a file. A file's name is the ``use`` key of a recipe; its one public class is the stage."""
