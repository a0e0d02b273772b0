"""Decoding in processes, which put pixels into memory that they share with this one."""
