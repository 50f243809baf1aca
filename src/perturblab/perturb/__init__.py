"""Noise in training: when it is due (``detectors``, ``controller``) and how strong it is (``magnitude``).

These three are pure functions of the rows and of numbers, and import no torch. ``noise`` adds it, ``clean`` measures
what training looks like beside it; both work on all tensors at once (``tensors``).
"""
