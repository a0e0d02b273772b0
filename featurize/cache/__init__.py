"""The feature cache: its file format, the reader and the writer."""
