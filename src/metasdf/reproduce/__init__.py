"""The paper's tables: cells that are trained, measured, kept as JSON, and set beside the published numbers."""
