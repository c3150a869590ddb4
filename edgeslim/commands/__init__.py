"""The commands of the command line, a file each; their heavy imports stand inside them."""
