"""Damaged and hostile files of every kind that hm3 reads, and what it makes of them."""
