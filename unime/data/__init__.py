"""Sources to tables: ITEMS, PAIRS and TASKS, with a report of everything that was left out and why."""
