"""The machine and the process: cores, memory, signals."""
