"""How the program of one device runs on many devices, and on many hosts."""
