"""Audit a finished output: how good its lists are, and whether they are what the job promises."""

from swing.audit.command import add_arguments, main, table
from swing.audit.report import audit

__all__ = ["add_arguments", "audit", "main", "table"]
