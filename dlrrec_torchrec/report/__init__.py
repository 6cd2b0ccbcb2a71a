"""Figures, tables and one HTML page. The stage is `report.stage.report`."""
