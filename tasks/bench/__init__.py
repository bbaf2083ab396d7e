"""The lab: what is measured of the engine, and searches compared with each other.

Its commands are in ``flows/bench``; no stage imports it.
"""
