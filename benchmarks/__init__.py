"""Figures of speed, memory and exactness, with what they were measured on."""
