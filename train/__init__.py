"""How networks learn: one loop, and what plugs into it."""
