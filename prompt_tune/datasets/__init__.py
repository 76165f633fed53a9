"""Labelled images: how every format is read, and the sample set that the project draws itself."""
