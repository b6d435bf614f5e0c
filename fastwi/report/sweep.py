"""Axis values as text, under their earlier name for the studies."""

from fastwi.report.summary import value_text as value_text
from fastwi.report.summary import variant_text as variant_text
