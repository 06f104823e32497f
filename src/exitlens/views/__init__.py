"""Figures, the report and terminal tables: everything here draws what tables hold and computes no statistic."""
