"""What `train_speed.py` is made of: the task, a worker for each contender, the judge, the report."""
