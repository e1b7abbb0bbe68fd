"""Scalar reward models: one number for a whole answer, from a head over a backbone; they judge, and never guide."""
