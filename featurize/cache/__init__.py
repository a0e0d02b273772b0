"""The feature cache: its format, its reader, its one writer."""
