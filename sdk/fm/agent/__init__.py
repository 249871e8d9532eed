"""The agent: takes runs from the queue and sees each through check, training and registration."""
