"""What one party does by itself, in the clear: data, models, scores, tracking and reports."""
