"""Bridges from feed libraries to tables; each imports its library only when it is used."""
