"""Classification, pairs and tagging: tasks from files or the hub, fine-tuning, and a probe."""
