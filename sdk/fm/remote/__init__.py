"""The remote backend: runs, models and files that a server keeps."""
