"""Timing simulator of a tiled decode step: discrete events per CTA and role. Its figures are always
modelled."""
