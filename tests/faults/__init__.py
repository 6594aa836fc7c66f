"""Faults, and the proof that nothing is lost and nothing is booked twice."""
