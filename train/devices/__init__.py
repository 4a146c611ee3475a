"""Devices: running the program of one device on many devices and many hosts."""
