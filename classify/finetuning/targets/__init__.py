"""Fine-tuning on several labels, numbers and grades: estimators and results."""
