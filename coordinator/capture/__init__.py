"""From torch code to a plan.

`capture` traces a function or module with example arguments (`tracing`), says for which sizes the result is right
(`symbols`), writes it as a graph of the plan format (`graphs`), and runs both side by side (`sidebyside`).
"""

from coordinator.capture.building import Captured, capture
from coordinator.capture.tracing import Target

__all__ = ["Captured", "Target", "capture"]
